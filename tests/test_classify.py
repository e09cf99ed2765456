"""Classifiers on toys: the same labels for every method, Test read once, folders that anyone can load."""

import dataclasses
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from icssl_lib import classify, recommended
from icssl_lib.adapt import adapt, plain_step, save
from icssl_lib.baselines import frozen, picture, self_taught
from icssl_lib.classify import Classified
from icssl_lib.config import Run
from icssl_lib.encoders import VisionTower, embed_titles, load_text, load_vision, nearest_rows, take, tokenize
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.finetune import Start, Task, build, train
from icssl_lib.lexical import C
from icssl_lib.methods import METHODS


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


@pytest.fixture
def run(study):
    """``run(method, catalogue, fraction, seed, keep, **finetune)``: a classifier's reading."""

    def read(method, catalogue, fraction=1.0, seed=0, keep=None, start=None, **settings) -> Classified:
        own = study.model_copy(update={"finetune": study.finetune.model_copy(update=settings)})
        start = start or Start(study.text.model, study.vision)
        return classify.classify(Run("toy", method, seed), fraction, catalogue, own, start, keep)

    return read


def changed(catalogue, rows, column, values):
    products = catalogue.products.copy()
    products.loc[rows, column] = values
    return dataclasses.replace(catalogue, products=products)


def relabelled(catalogue, part, labels):
    return changed(catalogue, catalogue.products.part == part, "label", labels)


def named_by_title(catalogue) -> np.ndarray:
    return catalogue.part("test").title.str.contains("|".join(toys.COLOURS)).to_numpy()  # the others cannot be known


def test_a_smaller_fraction_is_part_of_a_larger_one(toy, run):
    assert [run("tfidf", toy, fraction).scores["n_train"] for fraction in (0.2, 1.0)] == [6, 30]
    few, whole = (list(classify.train_subset(toy.part("train"), fraction, 0).id) for fraction in (0.2, 1.0))
    assert whole[:6] == few


def test_predictions_hold_what_the_records_need(toy, run):
    read, test = run("origin", toy), toy.part("test")
    assert list(read.predictions.columns) == ["id", "label", "predicted", "confidence"]
    pd.testing.assert_frame_equal(read.predictions[["id", "label"]], test[["id", "label"]].reset_index(drop=True))
    assert read.predictions.confidence.between(1 / len(toy.labels) - 1e-6, 1).all()
    metrics = ["accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1"]
    assert list(read.scores) == ["n_train", "dev_accuracy", *metrics, "test_readings"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reads_test_once_and_no_label_of_it_or_of_the_ssl_part(method, toy, run):
    read = run(method, toy)
    if method in ("labelled", "oracle"):  # ceilings: reading answers is what they are for
        assert read.scores["test_readings"] == 1
        return
    blind = relabelled(relabelled(toy, "test", "mug"), "ssl", "mug")
    again = run(method, blind).predictions
    assert read.scores["test_readings"] == 1
    pd.testing.assert_frame_equal(again.drop(columns="label"), read.predictions.drop(columns="label"))


def test_train_is_a_plain_loop_over_its_batches(study, toy):
    weights, products = [], toy.part("train")
    target = torch.tensor(pd.Index(toy.labels).get_indexer(products.label))
    tokens = tokenize(toys.tokenizer(study.text.model), list(products.title), 8)
    batches = [(0, take(tokens, rows, "cpu") | {"target": target[rows]}) for rows in torch.arange(30).split(15)]
    step = partial(plain_step, accelerator=make_accelerator(study.runtime))

    def loss_fn(model, batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["target"])

    for own in (False, True):
        torch.manual_seed(0)
        model = build(study.text.model, toy.labels, study)[0].train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _, batch in batches if own else ():
            loss_fn(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        if not own:
            train(model, batches, loss_fn, optimizer, step)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("method", ["origin", "recommended"])
def test_a_seed_gives_the_same_predictions(method, toy, run):
    one, same, other = (run(method, toy, seed=seed).predictions for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same)
    assert not one.confidence.equals(other.confidence)


@pytest.mark.parametrize("method", ["origin", "tfidf"])
def test_it_learns(method, toy, run):
    read, named = run(method, toy, epochs=40, lr=3e-3).predictions, named_by_title(toy)
    assert named.sum() >= 5
    assert (read.label == read.predicted)[named].mean() >= 0.8


def test_labels_absent_from_train_count_in_the_tail(toy, run):
    n = len(toy.part("train"))
    catalogue = relabelled(toy, "train", ["mug"] * (n - 3) + ["lamp"] * 3)  # head: mug
    found = run("tfidf", catalogue)
    label, predicted = found.predictions.label, found.predictions.predicted
    unknown = sorted(set(label) - {"mug", "lamp"})
    assert unknown
    assert "lamp" in set(label)
    f1 = f1_score(label, predicted, labels=["mug", "lamp", *unknown], average=None, zero_division=0)
    assert f1[2:].tolist() == [0] * len(unknown)  # none can be named
    assert found.scores["accuracy"] == pytest.approx((label == predicted).mean())
    assert found.scores["macro_f1"] == pytest.approx(f1.mean())
    assert found.scores["head_macro_f1"] == pytest.approx(f1[0])
    assert found.scores["tail_macro_f1"] == pytest.approx(f1[1:].mean())


def test_a_loss_that_is_not_finite_stops(toy, run):
    with pytest.raises(FloatingPointError, match=r"lower finetune\.lr"):
        run("origin", toy, lr=1e30)


def test_a_single_class_is_the_answer_to_all(toy, run):
    one = run("tfidf", relabelled(toy, "train", "mug")).predictions
    assert set(one.predicted) == {"mug"}
    assert (one.confidence == 1).all()


FRESH = """
import json, sys
sys.modules["icssl_lib"] = None  # importing it raises ImportError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from transformers import pipeline
folder, titles = json.load(sys.stdin)
classify = pipeline("text-classification", model=folder, device="cpu")
json.dump([classify(titles, truncation=True), classify.model.config.id2label], sys.stdout)
"""


def test_a_kept_classifier_predicts_the_same_in_a_process_without_this_library(toy, run, tmp_path):
    last = toy.products.index[toy.products.part == "test"][-1]
    catalogue = changed(toy, last, "title", "alma mug " * 20)  # longer than max_tokens
    expected = run("origin", catalogue, keep=tmp_path / "kept").predictions
    request = json.dumps([str(tmp_path / "kept"), list(catalogue.part("test").title)])
    command = [sys.executable, "-I", "-c", FRESH]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers, names = json.loads(done.stdout)
    assert list(names.values()) == catalogue.labels
    assert [answer["label"] for answer in answers] == list(expected.predicted)
    assert [answer["score"] for answer in answers] == pytest.approx(list(expected.confidence), abs=1e-4)


def test_nearest_rows_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    query, known = rng.normal(size=(30, 6)) + 0.5, rng.normal(size=(40, 6)) + 0.5
    for k in (1, 5, 99):
        cosines, rows = nearest_rows(torch.tensor(query), torch.tensor(known), k)
        for i, q in enumerate(query):
            cosine = [q @ x / np.sqrt(q @ q * (x @ x)) for x in known]
            nearest = sorted(range(40), key=lambda i: -cosine[i])[:k]
            assert rows[i].tolist() == nearest
            assert cosines[i].tolist() == pytest.approx([cosine[i] for i in nearest])
    known = torch.tensor(known)
    assert not (nearest_rows(known, known, 3, skip_self=True)[1] == torch.arange(40)[:, None]).any()


@pytest.fixture
def task(study, toy):
    return Task(toy, study, Start(study.text.model, study.vision), seed=0)


def test_a_probe_is_logistic_regression_on_unit_vectors_of_the_frozen_encoder(task, toy):
    train, test, text = toy.part("train"), toy.part("test"), task.study.text
    known, asked = (embed_titles(*load_text(text.model), list(p.title), text) for p in (train, test))
    known, asked = (torch.nn.functional.normalize(rows, dim=1).numpy() for rows in (known, asked))
    model = LogisticRegression(C=C, max_iter=1000).fit(known, train.label)
    np.testing.assert_allclose(frozen(task, train, ("title",))(test), model.predict_proba(asked), atol=5e-3)
    assert list(model.classes_) == toy.labels


def test_self_training_learns_words_that_no_labelled_title_has(task, toy):
    """`bora` stands beside `mug` in titles without a label, and `cira` beside `rug`."""
    rows = [("mug", "mug", "train"), ("rug", "rug", "train"), ("bora", "mug", "test"), ("cira", "rug", "test")]
    rows += [(f"mug bora {k}", "rug", "ssl") for k in range(10)]  # labels that nobody reads
    rows += [(f"rug cira {k}", "mug", "ssl") for k in range(10)]
    products = pd.DataFrame(rows, columns=["title", "label", "part"]).assign(image_row=-1)
    products["id"] = products.index.astype(str)
    own = dataclasses.replace(task, catalogue=dataclasses.replace(toy, products=products))
    train, test = own.catalogue.part("train"), own.catalogue.part("test")
    assert np.ptp(frozen(own, train, ("words",))(test), axis=0).max() < 1e-9  # it knows neither word
    taught = self_taught(own, train, ("words",))(test)
    assert [own.catalogue.labels[i] for i in taught.argmax(axis=1)] == ["mug", "rug"]


def test_frozen_features_are_unit_rows_side_by_side_and_labels_without_one_get_nothing(task, toy):
    seen = toy.part("train").query("label != 'vase'")
    found = frozen(task, seen, ("words", "ngrams", "title"))(toy.part("test"))
    assert found.sum(axis=1) == pytest.approx(1)
    assert (found[:, toy.labels.index("vase")] == 0).all()
    with_vectors = frozen(task, seen, ("words", "ngrams"))(toy.part("test"))
    assert not np.allclose(found, with_vectors)


def test_ceilings_by_hand(task, toy, run):
    few, test = classify.train_subset(toy.part("train"), 0.2, 0), toy.part("test")
    assert 0 < few.label.nunique() < 4
    share = test.label.isin(few.label).mean()
    read = run("labelled", toy, 0.2).predictions
    assert (read.label == read.predicted).mean() == pytest.approx(share)
    assert share < 1
    known = toy.products[toy.products.part != "test"].reset_index(drop=True)
    oracle, own = run("oracle", toy, 0.2).predictions, frozen(task, known, ("words", "ngrams"))(test)
    assert list(oracle.predicted) == [toy.labels[i] for i in own.argmax(axis=1)]


def test_a_picture_classifier_learns_from_pictures_and_titles_change_nothing(toy, run):
    expected = run("image", toy).predictions
    assert (expected.label == expected.predicted).mean() > 0.7
    titles = np.random.default_rng(0).permutation(toy.products.title)
    shuffled = dataclasses.replace(toy, products=toy.products.assign(title=titles))
    pd.testing.assert_frame_equal(run("image", shuffled).predictions, expected)


def test_products_without_a_picture_get_one_answer(toy, run):
    some = changed(toy, toy.products.index % 3 == 0, "image_row", -1)
    absent = (some.part("test").image_row < 0).to_numpy()
    read = run("image", some)
    assert read.scores["n_train"] == len(some.part("train"))
    assert read.predictions.predicted[absent].nunique() == 1
    none = changed(toy, toy.products.part == "train", "image_row", -1)
    usual = none.part("train").label.value_counts().sort_index().idxmax()
    assert set(run("image", none).predictions.predicted) == {usual}


@pytest.mark.parametrize("method", ["image", "recommended"])
def test_a_catalogue_without_pictures_is_refused(method, toy, run):
    bare = dataclasses.replace(toy, products=toy.products.assign(image_row=-1), images=None)
    with pytest.raises(ValueError, match=f"toy has no pictures; '{method}' needs them"):
        run(method, bare)


def test_a_classifier_of_pictures_reads_the_adapted_tower(study, toy, tmp_path):
    adapted = adapt(Run("toy", "convirt", 0), toy, study, progress=False)
    save(adapted, tmp_path)
    test = toy.part("test").head(6)
    tower = VisionTower(load_vision(study.vision), 1, 0, frozen=True, size=toys.SIZE).eval()
    plain = tower.embed(torch.tensor(toy.images[test.image_row.to_numpy()]))
    weights = {n.removeprefix("vision."): w for n, w in adapted.rest.items() if n.startswith("vision.backbone.")}
    tower.load_state_dict(weights, strict=False)
    other = tower.embed(torch.tensor(toy.images[test.image_row.to_numpy()]))
    for towers, expected in ((None, plain), (tmp_path / "towers.safetensors", other)):
        start = Start("unused", study.vision, towers)
        found = picture(Task(toy, study, start, seed=0), toy.part("train"))(test)
        unit = torch.nn.functional.normalize(expected, dim=1).detach().numpy()
        np.testing.assert_allclose(found, unit, atol=1e-5)
    assert not torch.allclose(plain, other, atol=1e-3)


def test_a_labels_name_is_one_more_title_of_its_own_and_no_label(toy, run):
    labels = {"Gel_Nail-Polishes": "Gel Nail Polishes", "mug": "mug", "--": "--", "Cafe\u0301": "Cafe\u0301"}
    assert recommended.named(list(labels))[["label", "title"]].to_numpy().tolist() == list(map(list, labels.items()))
    plain, named = run("tfidf", toy, 0.2), run("tfidf", toy, 0.2, label_names=True)
    assert plain.scores["n_train"] == named.scores["n_train"] == 6
    told = named_by_title(toy)
    right = [(r.predictions.label == r.predictions.predicted)[told].mean() for r in (plain, named)]
    assert right[1] > right[0]


def test_a_pooled_head_begins_as_a_probe_trains_and_is_a_sentence_transformer(toy, study, run, tmp_path):
    """With steps of no size it is the logistic regression on the frozen encoder."""
    titles, test = list(toy.part("test").title), toy.part("test")
    still = run("origin", toy, head="pooled", lr=1e-12, epochs=1).predictions
    probe = frozen(Task(toy, study, Start(study.text.model), 0), toy.part("train"))(test)
    assert (still.predicted.to_numpy() == np.array(toy.labels)[probe.argmax(axis=1)]).mean() > 0.9
    read = run("origin", toy, keep=tmp_path / "kept", head="pooled", epochs=20, lr=3e-3).predictions
    assert (read.predicted != still.predicted).any()
    elsewhere = SentenceTransformer(str(tmp_path / "kept"), device="cpu").encode(titles, convert_to_tensor=True)
    np.testing.assert_allclose(elsewhere.softmax(-1).amax(dim=1), read.confidence, atol=1e-3)
    assert read.predicted.tolist() == [toy.labels[i] for i in elsewhere.argmax(dim=1)]
