"""Exports answer as the classifier does; what an answer costs is counted and measured."""

import io
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import serving
import torch
import toys
import yaml
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import softmax
from sentence_transformers import SentenceTransformer
from serving import DESIGNS, Models, OnnxClassifier, Requests
from toys import flip
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from icssl_lib import catalogue, deploy
from icssl_lib.config import PretrainConfig, VisionConfig
from icssl_lib.deploy import TitleClassifier
from icssl_lib.encoders import Normalize, load_text, save_pretrained
from icssl_lib.files import seal
from icssl_lib.finetune import named_classes
from icssl_lib.lexical import Lexical
from icssl_lib.sources.synthetic.pretrain import text_shape

KINDS = ["bert", "modernbert"]
LABELS = sorted(toys.COLOURS)
TITLES = ["mug", "alma lamp 7", "dena vase " + "17 " * 40, "", "eris rug 3 bora 9"]  # one is cut, one has no word


def save_classifier(kind: str, folder: Path, text: Path) -> Path:
    """A classifier of the toys' labels as notebook 03 leaves it, with weights that tell titles apart."""
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.model_max_length = 16
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    modern = text_shape(PretrainConfig(hidden_size=32, layers=2, heads=2), len(tokenizer), **special)
    config = AutoConfig.from_pretrained(text) if kind == "bert" else modern
    config.update({"id2label": dict(enumerate(LABELS)), "label2id": {v: k for k, v in enumerate(LABELS)}})
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    for weights in model.parameters():
        if weights.ndim == 2:
            torch.nn.init.normal_(weights, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tiny_text, tiny_vision, tmp_path_factory) -> dict[str, Models]:
    vision = VisionConfig(model=f"local-dir:{tiny_vision}", image_size=toys.SIZE)
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("served") / kind
        classifier = save_classifier(kind, folder / "classifier", tiny_text)
        if kind == "bert":
            words = Lexical.fit(TITLES)
            terms = sum(len(vectorizer.vocabulary_) for vectorizer in words.vectorizers.values())
            words.save(np.random.default_rng(0).normal(size=(len(LABELS), terms)), classifier)
        fp32 = deploy.export_onnx(classifier, folder / "fp32")
        made[kind] = Models(classifier, fp32, serving.quantize_int8(fp32, folder / "int8"), vision)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_answers_as_transformers_own_pipeline(kind, served, tmp_path):
    models = served[kind]
    serve = pipeline("text-classification", model=str(models.classifier), device="cpu", top_k=None, truncation=True)
    scores = [{answer["label"]: answer["score"] for answer in answers} for answers in serve(TITLES)]
    expected = np.array([[row[label] for label in LABELS] for row in scores])
    own = serving.without_words(models.classifier)
    plain = shutil.copytree(models.classifier, tmp_path / "plain", ignore=shutil.ignore_patterns("lexical*"))
    onnx = OnnxClassifier(deploy.export_onnx(plain, tmp_path / "onnx"))
    assert onnx.labels == own.labels == LABELS
    assert np.ptp(expected, axis=0).max() > 0.02  # titles are told apart
    for rows in ([0], [2], [0, 1], [3, 1], [0, 1, 2, 3, 4]):  # alone, and padded to others
        asked = [TITLES[i] for i in rows]
        assert onnx(asked).dtype == own(asked).dtype == np.float32
        np.testing.assert_allclose(onnx(asked), expected[rows], atol=1e-4)
        np.testing.assert_allclose(own(asked), expected[rows], atol=1e-4)


def test_an_export_holds_words_too_and_any_number_of_them(served):
    models = served["bert"]
    onnx, own = OnnxClassifier(models.fp32), TitleClassifier(models.classifier)
    words, encoder = Lexical.load(models.classifier), serving.without_words(models.classifier)
    weight = load_file(models.classifier / "lexical.safetensors")["weight"]
    for titles in (TITLES, TITLES[:1], TITLES[3:4], ["unheard of"], [" ".join(TITLES)] * 3):  # [3]: no term at all
        logits = np.log(encoder(titles)) + words(pd.DataFrame({"title": titles})) @ weight.T
        np.testing.assert_allclose(own(titles), softmax(logits, axis=1), atol=1e-5)
        np.testing.assert_allclose(onnx(titles), own(titles), atol=1e-5)
    assert not np.allclose(own(TITLES), encoder(TITLES), atol=0.05)


def test_an_export_of_a_pooled_head_answers_as_sentence_transformers(tiny_text, tmp_path):
    model, tokenizer = load_text(str(tiny_text))
    model.config.update(named_classes(LABELS))
    tokenizer.model_max_length = 16
    head = [torch.nn.Dropout(0.5), Normalize(), torch.nn.Linear(32, 8), torch.nn.Linear(8, len(LABELS))]
    save_pretrained(model, tokenizer, tmp_path / "kept", "mean", head)
    expected = SentenceTransformer(str(tmp_path / "kept"), device="cpu").encode(TITLES, convert_to_tensor=True)
    onnx, own = (
        OnnxClassifier(deploy.export_onnx(tmp_path / "kept", tmp_path / "onnx")),
        TitleClassifier(tmp_path / "kept"),
    )
    for answer in (onnx, own):
        assert answer.labels == LABELS
        np.testing.assert_allclose(answer(TITLES), expected.softmax(-1).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_int8_mostly_agrees_and_is_smaller(kind, served, toy):
    models, titles = served[kind], list(toy.products.title)
    right = np.array(LABELS)[TitleClassifier(models.classifier)(titles).argmax(axis=1)]
    right[:3] = "none of them"
    rows = serving.agreement(models.classifier, {"fp32": models.fp32, "int8": models.int8}, titles, list(right))
    table = pd.DataFrame(rows).set_index("what")
    whole = "title_words" if kind == "bert" else "title"
    assert list(table.index) == [whole, "fp32", "int8"]
    assert (table.products == len(titles)).all()
    assert table.same[whole] == table.same["fp32"] == 1
    assert table.same["int8"] > 0.9
    assert table.accuracy[whole] == table.accuracy["fp32"] == pytest.approx(1 - 3 / len(titles))
    assert table.largest_difference["fp32"] < 1e-4 < table.largest_difference["int8"] < 0.1


def test_an_export_replaces_an_earlier_one_and_nothing_else(served, tmp_path):
    fp32, out = served["bert"].fp32, tmp_path / "export"
    out.mkdir()
    (out / "model.onnx").write_text("an earlier one, cut short")
    (out / "mine.txt").touch()
    for write, source in ((deploy.export_onnx, served["bert"].classifier), (serving.quantize_int8, fp32)):
        answer = OnnxClassifier(write(source, out))
        np.testing.assert_allclose(answer(TITLES), OnnxClassifier(fp32)(TITLES), atol=0.1)
    assert {path.name for path in out.iterdir()} == {path.name for path in fp32.iterdir()} | {"mine.txt"}
    with pytest.raises(shutil.Error):  # the same files
        serving.quantize_int8(out, out)


def test_what_cannot_be_served_is_refused(served, tiny_text, tmp_path):
    for folder in (tmp_path / "absent", tmp_path, tiny_text):
        with pytest.raises(ValueError, match=r"no classifier .*; name a folder below runs/<study>/classifiers"):
            deploy.export_onnx(folder, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    for answer in (OnnxClassifier(served["bert"].fp32), TitleClassifier(served["bert"].classifier)):
        for wrong in ([1], [None]):
            with pytest.raises((TypeError, ValueError), match=r"TextEncodeInput|type `str`"):
                answer(wrong)


@pytest.mark.filterwarnings("ignore:.* is not as it was written")  # then comes the error
def test_a_damaged_classifier_is_refused(served, tmp_path):
    folder = shutil.copytree(served["bert"].classifier, tmp_path / "kept")
    seal(folder)
    TitleClassifier(folder)
    flip(folder / "model.safetensors")
    for load in (TitleClassifier, lambda folder: deploy.export_onnx(folder, tmp_path / "x")):
        with pytest.raises(ValueError, match=r"no classifier .*model\.safetensors is not as it was written"):
            load(folder)


def test_flops_of_titles_are_a_count_by_hand(served):
    """Per token and layer: query, key, value, output, and two products of the feed-forward layers; and attention."""
    tokens, width, wide, labels = 6, 32, 64, 4  # [CLS] alma lamp 7 mug [SEP]
    linear = 2 * tokens * (4 * width * width + 2 * width * wide)
    attention = 2 * 2 * tokens * tokens * width  # scores, and the sum over values
    head = 2 * (width * width + width * labels)  # BERT's pooler, and the classifier
    counted = serving.count_flops(serving.load("title", served["bert"]), Requests(["alma lamp 7 mug"], []), batch=3)
    assert counted == linear + attention + head


def test_the_dual_models_are_their_parts_and_tfidf_is_asked_where_it_lies(served, toy):
    requests, models = serving.requests_of(toy, n=6), served["bert"]
    one = requests.titles[:1], requests.jpegs[:1]
    title, picture, late, words = (serving.load(w, models)(*one) for w in ("title", "picture", "late", "title_words"))
    np.testing.assert_allclose(late, (title + picture) / 2, atol=1e-6)
    np.testing.assert_allclose(words, TitleClassifier(models.classifier)(one[0]))
    assert not np.allclose(words, title)
    assert "title_words" not in served["modernbert"].designs(pictures=True)


def test_requests_are_products_of_dev_with_their_pictures(toy, tmp_path):
    requests = serving.requests_of(toy, n=100)
    assert sorted(requests.titles) == sorted(toy.part("dev").title)
    row = toy.products.set_index("title").image_row[requests.titles[0]]
    image = Image.open(io.BytesIO(requests.jpegs[0]))
    assert image.format == "JPEG"
    assert np.abs(np.asarray(image, int) - toy.images[[row]][0]).mean() < 15
    assert Image.open(io.BytesIO(serving.requests_of(toy, 1, side=100).jpegs[0])).size == (100, 100)
    assert serving.requests_of(toys.catalogue(tmp_path, pictures=False), 4).jpegs == []


@pytest.fixture(scope="module")
def cost(served, toy) -> pd.DataFrame:
    return serving.measure(served["bert"], serving.requests_of(toy, n=6), (1, 8), repeats=3, memory=False)


def test_the_table_has_a_row_per_contestant_and_batch(cost):
    assert list(zip(cost.batch, cost.what, strict=True)) == [(b, what) for b in (1, 8) for what in DESIGNS]
    assert (cost[serving.COSTS].drop(columns="peak_mb") > 0).all(axis=None)
    assert (cost.design == cost.what.map(DESIGNS)).all()
    for _, of in cost.set_index("what").groupby("batch"):
        for column in ("gflops", "bytes_per_request", "model_mb"):
            assert of.loc["late", column] > of.loc["title", column]
        assert of.gflops.filter(like="title").nunique() == 1
        assert of.gflops["late"] == pytest.approx(of.gflops["title"] + of.gflops["picture"])
        assert of.bytes_per_request["late"] == of.bytes_per_request["title"] + of.bytes_per_request["picture"]
        assert 0.8 * of.model_mb["title_onnx"] > of.model_mb["title_int8"]


def test_memory_is_of_a_process_of_its_own(served, toy):
    peak = serving.peak_memory("title_onnx", served["modernbert"], serving.requests_of(toy, n=6), [1, 4])
    assert 20 < peak[1] <= peak[4] < min(200, serving.peak_mb())  # without torch, which this process holds


def results(methods: list[str]) -> pd.DataFrame:
    rows = [("toy", m, f, s, 0.3 + f / 3 + i / 50) for i, m in enumerate(methods) for f in (0.2, 1.0) for s in (0, 1)]
    return pd.DataFrame(rows, columns=["dataset", "method", "fraction", "seed", "accuracy"])


def test_each_method_has_the_cost_of_what_it_is_served_by(cost, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision)
    methods = ["origin", "convirt", "tfidf", "image", "taught_picture", "recommended"]
    table = serving.accuracy_against_cost(cost, results(methods), study)
    first = table[table.fraction == 0.2].set_index("method")
    expected = {"origin": "title", "convirt": "title", "image": "picture", "taught_picture": "late"}
    assert first.what[first.index.notna()].to_dict() == expected | {"recommended": "title_words"}
    assert set(first.what[first.index.isna()]) == set(serving.EXPORTS)
    assert first.accuracy["convirt"] == pytest.approx(0.3 + 0.2 / 3 + 1 / 50)
    assert set(table.p50_ms) == set(cost[cost.batch == 1].p50_ms)
    with pytest.warns(UserWarning, match=r"no cost was measured of what serves them: \['recommended'\]"):
        serving.accuracy_against_cost(cost[cost.what != "title_words"], results(methods), study)


def test_the_notebook_runs_on_a_study_without_dual_methods(
    served, root, toy, tiny_text, tiny_vision, tmp_path, monkeypatch
):
    shutil.copytree(served["bert"].classifier, tmp_path / "classifiers/toy/convirt/seed0/f100")
    results(["origin", "convirt", "tfidf"]).to_csv(tmp_path / "results.csv", index=False)
    settings = toys.study(tiny_text, tiny_vision).model_dump(mode="json", exclude_none=True)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(settings | {"methods": ["origin", "convirt", "tfidf"]}))
    cells = json.loads((root / "notebooks/06_cost.ipynb").read_text("utf-8"))["cells"]
    assert {
        part for cell in cells for part in ("train", "test") if f'part("{part}")' in "".join(cell["source"])
    } == set()
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code.insert(1, f"config, out, repeats = {str(tmp_path / 'toy.yaml')!r}, {str(tmp_path)!r}, 2")
    monkeypatch.setattr(catalogue, "open_catalogue", lambda folder: toy)
    monkeypatch.setattr(serving, "peak_memory", lambda what, *_: dict.fromkeys((1, 32), 100.0 + len(what)))
    monkeypatch.chdir(root / "notebooks")
    names: dict = {"display": print}
    for source in code:
        exec(source, names)
    plt.close("all")
    cost = pd.read_csv(tmp_path / "figures/cost.csv")
    assert set(cost.what) == set(DESIGNS)
    assert pd.read_csv(tmp_path / "figures/onnx.csv").same[1] == 1
    assert set(names["points"].dropna(subset="accuracy").method) == {"origin", "convirt"}
