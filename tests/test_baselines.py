"""The baselines that the paper lacks, each against a plain version: masked LM, joint losses, neighbours, pictures."""

import dataclasses
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
import yaml
from test_scale import Killed, batch_of

from icssl_lib import adapt as adapting
from icssl_lib import encoders, finetune, methods, plan, runs
from icssl_lib.adapt import Towers, adapt, make_vision, save
from icssl_lib.config import AdaptConfig, ConfigError, FinetuneConfig, PretrainConfig, RuntimeConfig, load_config
from icssl_lib.encoders import ModelError, TextTower, hide_words, load_text, load_words
from icssl_lib.fast import fast
from icssl_lib.finetune import classify, classify_fractions, picture_weight, vote
from icssl_lib.methods import METHODS
from icssl_lib.pretrain import text_shape
from icssl_lib.scale import Checkpoint, WholeBatch, in_processes, local_rows

NEW = ["mlm", "convirt_simcse", "convirt_mlm", "knn", "knn_convirt", "image", "dual_late", "dual_joint"]


@pytest.fixture(scope="module")
def guessers(tiny_text, tmp_path_factory):
    """Folders that hold a head for masked language modelling: the toys' BERT, and the quick study's kind."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer, ModernBertForMaskedLM

    folder, tokenizer = tmp_path_factory.mktemp("guessers"), AutoTokenizer.from_pretrained(tiny_text)
    shape = PretrainConfig(hidden_size=32, layers=2, heads=2)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    torch.manual_seed(3)
    for model in (
        AutoModelForMaskedLM.from_pretrained(tiny_text),
        ModernBertForMaskedLM(text_shape(shape, len(tokenizer), **special)),
    ):
        for name, weights in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weights)  # a trained head has some
        model.save_pretrained(folder / model.config.model_type)
        tokenizer.save_pretrained(folder / model.config.model_type)
    return {name: folder / name for name in ("bert", "modernbert")}


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


def partly_shown(catalogue, every: int = 3):
    """The toy catalogue, every third product of each part without its picture."""
    products = catalogue.products.copy()
    products.loc[products.index % every == 0, "image_row"] = -1
    return dataclasses.replace(catalogue, products=products)


def with_titles(catalogue, titles):
    return dataclasses.replace(catalogue, products=catalogue.products.assign(title=titles))


# --- the registry


def test_the_registry_needs_no_torch():
    code = "import sys, icssl_lib.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_method_with_anothers_encoder_needs_that_method_in_the_study(study):
    for missing in ("knn_convirt", "tfidf"):
        named = study.model_copy(update={"methods": ["origin", "knn", missing]})
        if missing == "tfidf":
            runs.check_methods(named)
        else:
            with pytest.raises(ConfigError, match="'knn_convirt' classifies with the encoder of 'convirt'; add"):
                runs.check_methods(named)
    runs.check_methods(study.model_copy(update={"methods": ["origin", "knn_convirt", "convirt"]}))


def test_settings_that_came_later_change_no_digest_of_a_study_without_them():
    assert (runs.digest(AdaptConfig()), runs.digest(FinetuneConfig())) == ("b4d60fb2a124", "f1ce49d24b1e")
    for later in (AdaptConfig(mlm_weight=2), AdaptConfig(simcse_weight=2), FinetuneConfig(neighbours=3)):
        assert runs.digest(later) != runs.digest(type(later)())
        assert type(later).model_validate(later.model_dump()) == later


# --- masked language modelling


def test_15_percent_of_the_words_are_chosen_and_never_padding_or_special_tokens():
    torch.manual_seed(0)
    ids, words = torch.randint(10, 5000, (400, 100)), torch.rand(400, 100) < 0.6
    read, chosen = hide_words(ids, words, mask_id=4, vocabulary=5000)
    assert not (chosen & ~words).any()
    assert torch.equal(read[~chosen], ids[~chosen])
    share = chosen.sum() / words.sum()
    fates = torch.stack([read[chosen] == 4, read[chosen] == ids[chosen]]).float().mean(dim=1)
    assert share == pytest.approx(0.15, abs=0.01)
    assert fates.tolist() == pytest.approx([0.8, 0.1], abs=0.02)


def words_of(folder, seed: int = 0):
    """The text tower's encoder and the head on it, with what they read and chose at each call."""
    backbone, tokenizer = load_text(str(folder))
    torch.manual_seed(seed)
    return backbone, tokenizer, load_words(str(folder), backbone, tokenizer)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_loss_is_that_of_transformers_own_model_with_the_folders_head(name, quick, guessers, toy, monkeypatch):
    from transformers import AutoModelForMaskedLM

    reference = AutoModelForMaskedLM.from_pretrained(guessers[name]).eval()
    backbone, tokenizer, words = words_of(guessers[name])
    words.eval()
    seen = []

    def spy(*args, original=hide_words):
        seen.append((args[0], *original(*args)))
        return seen[-1][1:]

    monkeypatch.setattr(encoders, "hide_words", spy)
    tokens = encoders.tokenize(tokenizer, list(toy.part("ssl").title)[:20], 8)
    towers = Towers(TextTower(backbone.eval(), "mean", 16, 2), None, words)
    with fast(towers, quick):
        loss = methods.mlm(towers, SimpleNamespace(tokens=tokens), AdaptConfig())
    ((ids, read, chosen),) = seen
    assert chosen.any(dim=1).sum() not in (0, 20)  # of titles some have no hidden word
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert (special | (tokens["attention_mask"] == 0))[~special].sum() == 0
    assert not chosen[special].any()
    labels = ids.masked_fill(~chosen, -100)
    expected = reference(input_ids=read, attention_mask=tokens["attention_mask"], labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_gradients_reach_encoder_and_head_and_the_output_layer_is_the_embeddings(name, guessers, toy):
    backbone, tokenizer, words = words_of(guessers[name])
    tokens = encoders.tokenize(tokenizer, list(toy.part("ssl").title), 8)
    methods.mlm(SimpleNamespace(words=words), SimpleNamespace(tokens=tokens), AdaptConfig()).backward()
    named = {**dict(backbone.named_parameters()), **{f"words.{n}": p for n, p in words.named_parameters()}}
    named = {n: p for n, p in named.items() if "pooler" not in n}
    assert len(named) > 10
    for parameter_name, parameter in named.items():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all()
        assert parameter.ndim == 1 or parameter.grad.abs().max() > 0, parameter_name
    decoder = next(p for n, p in words.named_parameters() if n.endswith("decoder.weight"))
    assert decoder is backbone.get_input_embeddings().weight


def test_a_folder_without_a_head_gets_a_fresh_one_of_the_seed(tiny_text):
    one, same, other = (
        torch.cat([p.detach().flatten() for p in words_of(tiny_text, seed)[2].parameters()]) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_batch_without_a_hidden_word_has_no_loss(guessers, toy, monkeypatch):
    backbone, tokenizer, words = words_of(guessers["bert"])
    monkeypatch.setattr(encoders, "hide_words", lambda ids, *_: (ids, torch.zeros_like(ids, dtype=torch.bool)))
    tokens = encoders.tokenize(tokenizer, list(toy.part("ssl").title)[:4], 8)
    loss = methods.mlm(SimpleNamespace(words=words), SimpleNamespace(tokens=tokens), AdaptConfig())
    loss.backward()
    assert loss == 0
    assert backbone.get_input_embeddings().weight.grad.abs().max() == 0


def test_what_cannot_guess_words_is_named(tiny_text):
    backbone, tokenizer = load_text(str(tiny_text))
    with pytest.raises(ModelError, match="cannot be a masked language model"):
        load_words(str(tiny_text / "absent"), backbone, tokenizer)
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="has no mask token"):
        load_words(str(tiny_text), backbone, tokenizer)


def fixed(ids, words, mask_id, vocabulary):
    """Hides words by their ids alone, so that each process and chunk hides the same."""
    chosen = words & (ids % 4 == 0)
    return torch.where(chosen, mask_id, ids), chosen


def guessing_step(study, out, method: str, chunk_size: int | None, whole: bool = True) -> dict:
    """Loss and gradients of a step on a share of the batch, in however many processes this runs."""
    accelerator = adapting.make_accelerator(study.runtime)
    torch.manual_seed(0)
    backbone, tokenizer = load_text(study.text.model)
    text, words = TextTower(backbone, "mean", 16, 2), load_words(study.text.model, backbone, tokenizer)
    towers = Towers(text, make_vision(study, out), words).eval()
    batch = batch_of(local_rows(torch.arange(24), accelerator))
    stand_in = WholeBatch(towers, chunk_size, accelerator) if whole else towers
    loss = METHODS[method].loss(stand_in, batch, AdaptConfig())
    (stand_in.backward if whole else torch.Tensor.backward)(loss)
    named = towers.named_parameters()
    return {"loss": loss.detach(), "gradients": {name: p.grad for name, p in named if p.grad is not None}}


@pytest.mark.parametrize(("method", "processes", "chunk"), [("mlm", 1, 5), ("convirt_mlm", 2, 5)])
def test_chunks_and_processes_guess_as_one(study, tmp_path, monkeypatch, method, processes, chunk):
    monkeypatch.setattr(encoders, "hide_words", fixed)
    expected = guessing_step(study, tmp_path, method, None, whole=False)
    runtime = RuntimeConfig(device="cpu", processes=processes)
    shared = study.model_copy(update={"runtime": runtime})
    found = in_processes(runtime, guessing_step, shared, tmp_path, method, chunk)
    torch.testing.assert_close(found["loss"], expected["loss"])
    assert found["gradients"].keys() == expected["gradients"].keys()
    assert {name.split(".")[0] for name in found["gradients"]} >= {"text", "words"}
    for name, gradient in expected["gradients"].items():
        near = 1e-8 + 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=0, atol=near)


def test_steps_and_titles_are_those_of_simcse(study, toy, tmp_path, monkeypatch):
    shown = {"mlm": [], "simcse": []}
    for method, batches in shown.items():
        entry = METHODS[method]

        def spy(towers, batch, config, entry=entry, batches=batches):
            batches.append(batch.tokens["input_ids"].tolist())
            return entry.loss(towers, batch, config)

        monkeypatch.setitem(METHODS, method, dataclasses.replace(entry, loss=spy))
        adapt(method, toy, study, 0, tmp_path, progress=False)
    assert len(shown["mlm"]) == 60 // 8
    assert shown["mlm"] == shown["simcse"]


# --- joint losses


@pytest.mark.parametrize("added", ["simcse", "mlm"])
def test_a_joint_loss_is_the_sum_of_its_parts(added, study, tmp_path):
    torch.manual_seed(0)
    backbone, tokenizer = load_text(study.text.model)
    words = load_words(study.text.model, backbone, tokenizer)
    towers = Towers(TextTower(backbone, "mean", 16, 2), make_vision(study, tmp_path), words).train()
    batch, config = batch_of(torch.arange(24)), AdaptConfig(**{f"{added}_weight": 0.5})
    torch.manual_seed(2)
    parts = [METHODS[name].loss(towers, batch, config).item() for name in ("convirt", added)]
    torch.manual_seed(2)
    assert METHODS[f"convirt_{added}"].loss(towers, batch, config).item() == pytest.approx(parts[0] + 0.5 * parts[1])


# --- nearest neighbours


def test_votes_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    query, known = rng.normal(size=(30, 6)) + 0.5, rng.normal(size=(40, 6)) + 0.5
    label = rng.integers(0, 4, 40)
    for k in (1, 5, 99):
        found = vote(*(torch.tensor(x) for x in (query, known, label)), 4, k).numpy()
        for q, row in zip(query, found, strict=True):
            cosine = [q @ x / np.sqrt(q @ q * (x @ x)) for x in known]
            nearest = sorted(range(40), key=lambda i: -cosine[i])[:k]
            votes = [sum(max(cosine[i], 1e-6) for i in nearest if label[i] == c) for c in range(4)]
            assert row == pytest.approx(np.array(votes) / sum(votes))


def test_near_votes_outweigh_many_and_a_tie_goes_to_the_first():
    known = torch.tensor([[1.0, 0], [0.1, 1], [0.1, -1]])
    query = torch.tensor([[1.0, 0]])
    assert vote(query, known, torch.tensor([1, 0, 0]), 2, 3).argmax() == 1
    assert vote(query, known[[0, 0]], torch.tensor([1, 0]), 2, 5).argmax() == 0


def test_knn_reads_the_other_methods_encoder_and_k(study, toy, tiny_text, tmp_path):
    folder = runs.piece(tmp_path, "encoders", toy.name, "convirt", 0)
    save(adapt("convirt", toy, study, 0, tmp_path, progress=False), folder)
    of_convirt = classify("knn", str(folder), toy, study, 1.0, 0).predictions
    of_origin = classify("knn", str(tiny_text), toy, study, 1.0, 0).predictions
    for method, expected in (("knn_convirt", of_convirt), ("knn", of_origin)):
        _, read = classify_fractions(method, toy, study, 0, tmp_path, progress=False)
        read = read[read.fraction == 1.0].reset_index(drop=True)
        pd.testing.assert_frame_equal(read[list(expected)], expected)
    assert not of_convirt.equals(of_origin)
    fewer = study.model_copy(update={"finetune": study.finetune.model_copy(update={"neighbours": 1})})
    assert (classify("knn", str(tiny_text), toy, fewer, 1.0, 0).predictions.confidence == 1).all()


# --- pictures


def test_a_picture_classifier_learns_from_pictures_and_titles_change_nothing(toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, finetune={"epochs": 12})
    expected = classify("image", "unused", toy, study, 1.0, 0).predictions
    assert (expected.label == expected.predicted).mean() > 0.7
    shuffled = with_titles(toy, np.random.default_rng(0).permutation(toy.products.title))
    pd.testing.assert_frame_equal(classify("image", "unused", shuffled, study, 1.0, 0).predictions, expected)


@pytest.mark.parametrize("selection", ["last", "best_dev"])
def test_products_without_a_picture_get_the_most_frequent_class_and_are_counted(selection, toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, finetune={"selection": selection})
    some = partly_shown(toy)
    absent = (some.part("test").image_row < 0).to_numpy()
    train = some.part("train").label
    usual = train.value_counts().sort_index().idxmax()
    with pytest.warns(UserWarning, match=rf"toy: {absent.sum()} of {len(absent)} products of test .* '{usual}'"):
        read = classify("image", "unused", some, study, 1.0, 0)
    assert read.n_train == len(train)
    assert set(read.predictions.predicted[absent]) == {usual}
    assert read.predictions.confidence[absent].tolist() == pytest.approx([(train == usual).mean()] * absent.sum(), 1e-5)
    train_only = toy.products.image_row.where(toy.products.part != "train", -1)
    none = dataclasses.replace(toy, products=toy.products.assign(image_row=train_only))
    with pytest.warns(UserWarning, match=f"{len(absent)} of {len(absent)} products of test"):
        assert set(classify("image", "unused", none, study, 1.0, 0).predictions.predicted) == {usual}
    late = classify("dual_late", str(tiny_text), none, study, 1.0, 0).predictions
    pd.testing.assert_frame_equal(late, classify("origin", str(tiny_text), none, study, 1.0, 0).predictions)


@pytest.mark.parametrize("method", ["image", "dual_late", "dual_joint"])
def test_a_catalogue_without_pictures_is_refused(method, toy, study, tiny_text):
    bare = dataclasses.replace(toy, products=toy.products.assign(image_row=-1), images=None)
    with pytest.raises(ValueError, match=f"toy has no pictures; '{method}' needs them"):
        classify(method, str(tiny_text), bare, study, 1.0, 0)


def test_the_weight_of_pictures_is_the_best_on_dev_and_the_smallest_of_equals():
    labels, dev = ["a", "b"], pd.DataFrame({"label": ["a", "a", "b"]})
    title = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    picture = np.array([[0.4, 0.6], [0.9, 0.1], [0.45, 0.55]])
    # By hand: the first is right up to w = .8, the second from w = .43 on, the third always.
    assert picture_weight(title, picture, labels, dev) == 0.5
    assert picture_weight(title, title, labels, dev) == 0


def test_late_fusion_averages_the_two_classifiers_with_a_weight_of_dev(toy, study, tiny_text, monkeypatch):
    some, chosen, read = partly_shown(toy), [], []

    def weight(title, picture, labels, dev):
        assert list(dev.id) == list(some.part("dev").id)  # Test has no say
        chosen.append((title, picture))
        return 0.3

    def spy(*args, original=finetune.predict):
        read.append((args[2], original(*args)))
        return read[-1][1]

    monkeypatch.setattr(finetune, "picture_weight", weight)
    monkeypatch.setattr(finetune, "predict", spy)
    late = classify("dual_late", str(tiny_text), some, study, 1.0, 0)
    assert len(chosen) == 1
    test = some.part("test")
    shown = (test.image_row >= 0).to_numpy()
    (first, title), (second, picture) = read[-2:]
    assert first == list(test.title)  # each classifier reads Test once, and last
    assert second == list(test.title[shown])
    assert not {tuple(titles) for titles, _ in read[:-2]} & {tuple(first), tuple(second)}
    mixed = title.copy()
    mixed[shown] = 0.7 * title[shown] + 0.3 * picture
    assert late.predictions.confidence.tolist() == pytest.approx(mixed.max(axis=1), abs=1e-6)
    origin = classify("origin", str(tiny_text), some, study, 1.0, 0).predictions
    pd.testing.assert_frame_equal(late.predictions[~shown], origin[~shown])
    with pytest.warns(UserWarning, match="for want of a picture"):
        image = classify("image", str(tiny_text), some, study, 1.0, 0).predictions
    assert image.confidence[shown].tolist() == pytest.approx(picture.max(axis=1), abs=1e-6)


@pytest.mark.parametrize("method", ["image", "dual_late", "dual_joint"])
def test_labels_of_test_change_nothing(method, toy, study, tiny_text):
    products = toy.products.copy()
    products.loc[products.part == "test", "label"] = "mug"
    expected = classify(method, str(tiny_text), toy, study, 1.0, 0).predictions
    wrong = classify(method, str(tiny_text), dataclasses.replace(toy, products=products), study, 1.0, 0).predictions
    pd.testing.assert_frame_equal(wrong.drop(columns="label"), expected.drop(columns="label"))


def test_one_head_on_both_towers_trains_all_weights_and_reads_zeros_for_no_picture(toy, study, tiny_text, monkeypatch):
    models, gradients = [], []

    class Seen(finetune.LookingClassifier):
        def __init__(self, *parts):
            super().__init__(*parts)
            models.append(self)

    def spy(parameters, accelerator):
        gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in models[0].named_parameters()})

    monkeypatch.setattr(finetune, "LookingClassifier", Seen)
    monkeypatch.setattr(finetune, "sum_gradients", spy)
    classify("dual_joint", str(tiny_text), partly_shown(toy), study, 1.0, 0)
    seen = {name: g for name, g in gradients[0].items() if "pooler" not in name}
    for part in ("text.backbone.", "vision.backbone.", "classifier."):
        of_part = {name: g for name, g in seen.items() if name.startswith(part)}
        assert of_part, part
        assert all(g is not None and (g.ndim == 1 or g.abs().max() > 0) for g in of_part.values()), part
    model = models[0].eval()
    assert model.classifier.weight.shape == (4, 32 + 32)
    tokens = {"input_ids": torch.tensor([[1, 7, 8, 2]] * 2), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    pixels = torch.randint(0, 256, (2, toys.SIZE, toys.SIZE, 3), dtype=torch.uint8)
    unseen = model(pixels=pixels, shown=torch.tensor([False, False]), **tokens)
    assert torch.equal(unseen[0], unseen[1])
    assert not torch.equal(*model(pixels=pixels, shown=torch.tensor([True, True]), **tokens))


@pytest.mark.parametrize("method", ["dual_late", "dual_joint"])
def test_a_killed_stage_goes_on_and_ends_the_same(method, toy, study, tmp_path, monkeypatch):
    study = study.model_copy(update={"runtime": RuntimeConfig(device="cpu", checkpoint_minutes=0)})
    expected = classify_fractions(method, toy, study, 0, tmp_path / "a", progress=False)
    saved, count = Checkpoint.save, [0]

    def save_and_die(self, **progress):
        saved(self, **progress)
        count[0] += 1
        if count[0] in (9, 15):  # of 2 + 8 steps, and of late fusion's as many again: once in each half
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        for _ in range(2 if method == "dual_late" else 1):
            with pytest.raises(Killed):
                classify_fractions(method, toy, study, 0, tmp_path / "b", progress=False)
    scores, predictions = classify_fractions(method, toy, study, 0, tmp_path / "b", progress=False)
    assert predictions.equals(expected[1])
    assert scores.drop(columns="seconds").equals(expected[0].drop(columns="seconds"))
    assert not list((tmp_path / "b" / "checkpoints").rglob("*.p*"))


# --- all of them in one study


def test_each_method_lands_in_the_results_table(toy, study, tmp_path):
    study = study.model_copy(update={"methods": ["origin", "convirt", "tfidf", *NEW]})
    drawn = set()
    for method in study.methods:
        if METHODS[method].adapts:
            adapted = adapt(method, toy, study, 0, tmp_path, progress=False)
            save(adapted, runs.piece(tmp_path, "encoders", toy.name, method, 0))
        scores, predictions = classify_fractions(method, toy, study, 0, tmp_path, progress=False)
        assert list(predictions.columns) == [
            *("dataset", "method", "fraction", "seed"), *("id", "label", "predicted", "confidence")
        ]  # fmt: skip
        assert set(predictions.predicted) <= set(toy.labels)
        assert predictions.confidence.between(1 / len(toy.labels) - 1e-6, 1).all()
        drawn.add(tuple(scores.n_train))
        runs.save_record(tmp_path, toy, method, 0, study, scores, predictions)
    assert drawn == {(6, 30)}
    results = runs.collect(study, tmp_path)
    assert list(results.method.unique()) == study.methods
    assert results.notna().all(axis=None)


@pytest.fixture(scope="module")
def everything(root, tmp_path_factory):
    """The smoke study with all methods and one seed, and Snakemake's list of what it would run: output -> inputs."""
    folder = tmp_path_factory.mktemp("all")
    raw = yaml.safe_load((root / "config/smoke.yaml").read_text()) | {"seeds": [0], "methods": list(METHODS)}
    config = folder / "all.yaml"
    config.write_text(yaml.safe_dump(raw))
    command = runs.snakemake(config, folder, "--dry-run")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"^ +input: (.*)\n +output: (.*)$", done.stdout + done.stderr, re.MULTILINE)
    return load_config(config), folder, {o.split(", ")[0]: set(i.split(", ")) for i, o in jobs}


def test_each_job_waits_for_what_it_reads(everything):
    _, _, jobs = everything
    text, vision = "pretrained/text/config.json", "pretrained/vision/config.json"
    own = {m: f"encoders/beauty/{m}/seed0/config.json" for m in METHODS}
    reads = {"knn_convirt": {own["convirt"]}, "image": {vision}, "dual_late": {text, vision}}
    reads |= {"dual_joint": {text, vision}, "knn": {text}, "origin": {text}, "tfidf": {text}}
    reads |= {m: {own["convirt"]} for m in ("self_trained", "self_trained_names", "recommended")}
    reads |= {"recommended_origin": {text}}
    reads |= {"recommended_shuffled": {own["convirt_shuffled"]}}
    reads |= {method: {own["convirt"], vision} for method in ("dual_convirt", "distilled")}
    first = {"dual_late": ["origin", "image"], "dual_convirt": ["convirt"], "self_trained": ["convirt"]}
    first |= {"distilled": ["convirt", "dual_convirt"], "recommended": ["self_trained_names"]}  # which they take over
    for method, makers in first.items():
        reads[method] = reads[method] | {f"records/beauty/{maker}/seed0.json" for maker in makers}
    adapting = [m for m in METHODS if METHODS[m].adapts]
    assert {"mlm", "convirt_simcse", "convirt_mlm"} < set(adapting)
    for method in METHODS:
        found = jobs[f"records/beauty/{method}/seed0.json"] - {"catalogues/beauty/catalogue.json"}
        assert found == (reads[method] if method in reads else {own[method]}), method
    for method in adapting:
        found = jobs[own[method]] - {"catalogues/beauty/catalogue.json"}
        assert found == ({text} if METHODS[method].pictures == "none" else {text, vision}), method
    assert len(jobs) >= 2 + len(adapting) + len(METHODS)


def test_the_plan_counts_and_measures_them_all(everything):
    study, folder, jobs = everything
    table = plan.plan(study, folder, 1, measured=False)
    stages = pd.DataFrame(table["stages"]).set_index(["stage", "method"])
    for stage, kind in (("adapt", "encoders/"), ("finetune", "records/")):
        assert stages.jobs[stage].sum() == sum(output.startswith(kind) for output in jobs), stage
    flops = stages.flops["finetune"]
    assert 0 < flops["dual_late"] < 0.1 * (flops["origin"] + flops["image"])  # both are trained already
    alone = study.model_copy(update={"methods": ["origin", "dual_late", "image"]})
    late = pd.DataFrame(plan.plan(alone, folder, 1, measured=False)["stages"]).set_index(["stage", "method"]).flops
    assert late["finetune", "dual_late"] == pytest.approx(flops["image"], rel=0.1)
    assert 0 < flops["knn"] == flops["knn_convirt"] < flops["origin"]
    adapted = stages.flops["adapt"]
    assert adapted["mlm"] < adapted["simcse"]
    assert adapted["convirt"] < adapted["convirt_mlm"] < adapted["convirt_simcse"]
    data = {name: plan.data_of(name, study, folder) for name in study.datasets}
    listed = plan.jobs_of(study, data, lambda tokens: plan.costs(study, tokens), 0.001)
    kinds = sorted({job.kind for job in listed if job.kind} - {"pretrain text", "pretrain vision"})
    assert {"mlm", "convirt_simcse", "convirt_mlm", "image", "joint"} < set(kinds)
    kinds.append("late")  # which no method trains whole when all are asked for
    took = plan.time_steps(study, data["beauty"], kinds, dict.fromkeys(kinds, 8), 0.02)
    assert min(took.values()) > 0
