"""Exports answer as the classifier does, costs are counted and measured, and nonsense is refused by name."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import toys
import yaml
from PIL import Image

from icssl_lib import deploy, figures
from icssl_lib.deploy import DeployError, Models, OnnxClassifier, Requests, TorchClassifier
from icssl_lib.lexical import Lexical
from icssl_lib.methods import METHODS

KINDS = ["bert", "modernbert"]
TITLES = ["mug", "alma lamp 7", "dena vase " + "17 " * 40, "", "eris rug 3 bora 9"]  # one is cut, one has no word


def save_classifier(kind: str, folder: Path, text: Path) -> Path:
    """A classifier of the toys' labels as notebook 03 leaves it, with weights that tell titles apart."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
    from transformers import ModernBertForSequenceClassification as ModernBert

    from icssl_lib.config import PretrainConfig
    from icssl_lib.pretrain import text_shape

    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.model_max_length = 16
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    names = {"id2label": dict(enumerate(sorted(toys.COLOURS))), "num_labels": len(toys.COLOURS)}
    torch.manual_seed(1)
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig.from_pretrained(text, **names))
    else:
        shape = text_shape(PretrainConfig(hidden_size=32, layers=2, heads=2), len(tokenizer), **special)
        shape.update({"id2label": names["id2label"], "label2id": {v: k for k, v in names["id2label"].items()}})
        model = ModernBert(shape)
    for weights in model.parameters():
        if weights.ndim == 2:
            torch.nn.init.normal_(weights, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tiny_text, tiny_vision, tmp_path_factory) -> dict[str, Models]:
    """Each kind of classifier with its exports, and a vision tower."""
    from icssl_lib.config import VisionConfig

    vision = VisionConfig(model=f"local-dir:{tiny_vision}", image_size=toys.SIZE)
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("served") / kind
        classifier = save_classifier(kind, folder / "classifier", tiny_text)
        if kind == "bert":
            labels = sorted(toys.COLOURS)
            Lexical.fit(TITLES, [*labels, labels[0]], labels).save(classifier)
        fp32 = deploy.export_onnx(classifier, folder / "fp32")
        made[kind] = Models(classifier, fp32, deploy.quantize_int8(fp32, folder / "int8"), vision)
    return made


@pytest.fixture(scope="module")
def requests(toy) -> Requests:
    return deploy.requests_of(toy, n=6)


# --- exports


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_answers_as_transformers_own_pipeline(kind, served):
    from transformers import pipeline

    models = served[kind]
    serve = pipeline("text-classification", model=str(models.classifier), device="cpu", top_k=None, truncation=True)
    onnx, labels = OnnxClassifier(models.fp32), sorted(toys.COLOURS)
    assert onnx.labels == deploy.labels_of(models.classifier) == labels
    expected = [{answer["label"]: answer["score"] for answer in answers} for answers in serve(TITLES)]
    expected = np.array([[scores[label] for label in labels] for scores in expected])
    assert np.ptp(expected, axis=0).max() > 0.02  # titles are told apart
    for rows in ([0], [2], [0, 1], [3, 1], range(5)):  # alone, and padded to others
        found = onnx([TITLES[i] for i in rows])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[list(rows)], atol=1e-4)
        np.testing.assert_allclose(found, TorchClassifier("title", models)([TITLES[i] for i in rows]), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batches_of_any_size_change_nothing(kind, served):
    onnx = OnnxClassifier(served[kind].fp32)
    many = [f"{brand} {label} {i}" + " 5" * (i % 9) for i, brand in enumerate(toys.BRANDS) for label in toys.COLOURS]
    together = onnx(many)
    assert len(many) == 32
    for at in (0, 13, 31):
        np.testing.assert_allclose(onnx(many[at : at + 1])[0], together[at], atol=1e-5)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


def test_tokens_are_the_tokenizers_own(served):
    from transformers import AutoTokenizer

    folder = served["bert"].classifier
    own = AutoTokenizer.from_pretrained(folder)(TITLES, padding=True, truncation=True)
    assert deploy.max_tokens(folder) == 16 == max(map(len, own["input_ids"]))
    read = OnnxClassifier(served["bert"].fp32).tokenizer.encode_batch(TITLES)
    assert [row.ids for row in read] == own["input_ids"]
    assert [row.attention_mask for row in read] == own["attention_mask"]


@pytest.mark.parametrize("kind", KINDS)
def test_int8_mostly_agrees_and_is_smaller(kind, served, toy):
    products = toy.products
    table = deploy.compare(served[kind], list(products.title), list(products.label)).set_index("what")
    assert list(table.index) == ["title", "title_onnx", "title_int8"]
    assert (table.products == len(products)).all()
    assert table.same["title"] == table.same["title_onnx"] == 1
    assert table.accuracy["title"] == table.accuracy["title_onnx"]
    assert table.largest_difference["title_onnx"] < 1e-4 < table.largest_difference["title_int8"] < 0.1
    assert table.same["title_int8"] > 0.9
    weights = {what: deploy.load(what, served[kind]).file for what in ("title_onnx", "title_int8")}
    assert table.model_mb.to_dict().items() >= {w: f.stat().st_size / 1e6 for w, f in weights.items()}.items()
    assert table.model_mb["title_int8"] < 0.8 * table.model_mb["title_onnx"]


def test_accuracy_is_the_share_of_right_labels(served, toy):
    titles = list(toy.part("dev").title)
    labels = np.array(sorted(toys.COLOURS))[TorchClassifier("title", served["bert"])(titles).argmax(axis=1)]
    labels[:3] = "none of them"
    table = deploy.compare(served["bert"], titles, list(labels)).set_index("what")
    assert table.accuracy["title"] == pytest.approx(1 - 3 / len(titles))


def test_an_export_is_whole_or_not_there(served, tmp_path, monkeypatch):
    import onnxruntime.quantization

    def die(model, out, **_):
        out.write_bytes(b"half")
        raise KeyboardInterrupt

    out = tmp_path / "int8"
    shutil.copytree(served["bert"].int8, out)
    (out / "of an earlier export").touch()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime.quantization, "quantize_dynamic", die)
        with pytest.raises(KeyboardInterrupt):
            deploy.quantize_int8(served["bert"].fp32, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    deploy.quantize_int8(served["bert"].fp32, out)
    assert {path.name for path in out.iterdir()} == before.keys() - {"of an earlier export"}
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_an_export_takes_the_place_of_nothing_else(served, tmp_path, monkeypatch):
    models = served["bert"]
    classifier = Path(shutil.copytree(models.classifier, tmp_path / "models" / "classifier"))
    fp32 = Path(shutil.copytree(models.fp32, tmp_path / "models" / "exports" / "fp32"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    (tmp_path / "file").touch()
    mixed = Path(shutil.copytree(models.fp32, tmp_path / "mixed"))
    (mixed / "model.safetensors").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(deploy, "load_classifier", lambda folder: pytest.fail("it was at work already"))
    monkeypatch.chdir(tmp_path / "models")
    for write, source in ((deploy.export_onnx, classifier), (deploy.quantize_int8, fp32)):
        for out in (source, source / "..", source.parent, tmp_path, Path("."), Path(source.name, "..", "..")):
            with pytest.raises(DeployError, match=rf"{out}: would be replaced, and .* is read from it; name a new"):
                write(source, out)
        with pytest.raises(DeployError, match=r"notes: would be replaced, and holds no model\.onnx, but mine\.txt"):
            write(source, tmp_path / "notes")
        with pytest.raises(DeployError, match=r"mixed: would be replaced, and holds model\.safetensors, which no"):
            write(source, mixed)
        with pytest.raises(DeployError, match=r"file: is no folder; name a new or an empty folder"):
            write(source, tmp_path / "file")
    with pytest.raises(DeployError, match=r"classifier: would be replaced, and holds lexical\.safetensors"):
        deploy.quantize_int8(fp32, classifier)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for out in (tmp_path / "models" / "new", tmp_path / "empty", classifier / "int8"):
        if out.name == "empty":
            out.mkdir()
        for _ in range(2):  # the second replaces the first
            deploy.quantize_int8(fp32, out)
        assert (out / "model.onnx").is_file()
    assert {path: path.read_bytes() for path in before} == before


def test_a_process_that_serves_an_export_imports_no_torch(served):
    code = "import sys; from pathlib import Path; from icssl_lib.deploy import OnnxClassifier as C; "
    code += f"C(Path({str(served['bert'].fp32)!r}))(['mug']); sys.exit(bool({{'torch', 'transformers', 'pandas'}} & "
    code += "set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- errors


def test_what_cannot_be_served_is_refused(served, tiny_text, tmp_path):
    models = served["bert"]
    with pytest.raises(DeployError, match=r"absent: no such folder; name a folder below runs/<study>/classifiers"):
        deploy.export_onnx(tmp_path / "absent", tmp_path / "x")
    with pytest.raises(DeployError, match=r"no config.json that could be read"):
        deploy.export_onnx(tmp_path, tmp_path / "x")
    with pytest.raises(DeployError, match=r"text: no classifier \(BertModel\)"):
        deploy.export_onnx(tiny_text, tmp_path / "x")
    broken = shutil.copytree(models.classifier, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DeployError, match=r"broken: cannot be loaded"):
        deploy.export_onnx(broken, tmp_path / "x")
    with pytest.raises(DeployError, match=r"no model.onnx; call export_onnx"):
        deploy.quantize_int8(models.classifier, tmp_path / "x")
    with pytest.raises(DeployError, match=r"no model.onnx; call export_onnx"):
        OnnxClassifier(models.classifier)
    assert not (tmp_path / "x").exists()
    with pytest.raises(DeployError, match=r"no contestant 'lat'; did you mean 'late'"):
        deploy.load("lat", models)
    with pytest.raises(DeployError, match=r"joint: needs a vision tower"):
        deploy.load("joint", Models(models.classifier, models.fp32, models.int8))
    with pytest.raises(DeployError, match=r"no model\.onnx; call export_onnx"):
        deploy.load("title_onnx", Models(models.classifier))
    with pytest.raises(DeployError, match=r"TF-IDF cannot be read there .*; name a folder of `recommended`"):
        deploy.load("title_words", served["modernbert"])


@pytest.mark.parametrize("what", ["title", "title_onnx", "late"])
def test_no_titles_and_no_list_are_refused(what, served):
    answer = deploy.load(what, served["bert"])
    with pytest.raises(DeployError, match="the list is empty"):
        answer([])
    for wrong in ("mug", [1], [None]):
        with pytest.raises(DeployError, match="expected a list of str"):
            answer(wrong)
    if what == "late":
        with pytest.raises(DeployError, match="no picture came"):
            answer(["mug"])


def test_nothing_to_measure_is_refused(served, requests, toy, tmp_path):
    for options in ({"batches": []}, {"batches": [0]}, {"repeats": 0}, {"devices": []}):
        with pytest.raises(DeployError, match="at least 1 of each"):
            deploy.measure(served["bert"], requests, **options)
    with pytest.raises(DeployError, match="list is empty"):
        Requests([], [])
    with pytest.raises(DeployError, match="1 for 2 titles"):
        Requests(["a", "b"], [b""])
    with pytest.raises(DeployError, match="1 for 2 titles"):
        deploy.compare(served["bert"], ["a", "b"], ["mug"])
    products = toy.products.assign(image_row=-1)
    with pytest.raises(DeployError, match="no product with a picture"):
        deploy.requests_of(type(toy)("toy", products, toy.images, toy.report, "", tmp_path))
    with pytest.raises(DeployError, match=r"title_onnx on cpu: the process that serves it failed: .*no model.onnx"):
        deploy.peak_memory("title_onnx", Models(*[tmp_path] * 3), requests, [1])


# --- costs


def test_flops_of_titles_are_a_count_by_hand(served):
    """Per token and layer: query, key, value, output, and two products of the feed-forward layers; and attention."""
    tokens, width, wide, labels = 6, 32, 64, 4  # [CLS] alma lamp 7 mug [SEP]
    linear = 2 * tokens * (4 * width * width + 2 * width * wide)
    attention = 2 * 2 * tokens * tokens * width  # scores, and the sum over values
    head = 2 * (width * width + width * labels)  # BERT's pooler, and the classifier
    answer = TorchClassifier("title", served["bert"])
    assert deploy.count_flops(answer, ["alma lamp 7 mug"]) == linear + attention + head
    assert deploy.count_flops(answer, ["alma lamp 7 mug"] * 3) == 3 * (linear + attention + head)


def test_the_dual_models_are_their_parts(served, requests):
    one = requests.titles[:1], requests.jpegs[:1]
    flops = {what: deploy.count_flops(TorchClassifier(what, served["bert"]), *one) for what in deploy.SERVES.values()}
    assert flops["late"] == flops["title"] + flops["picture"]
    assert 0 < flops["title"] < flops["joint"] == pytest.approx(flops["late"], rel=0.01)
    title, picture, late = (TorchClassifier(what, served["bert"])(*one) for what in ("title", "picture", "late"))
    np.testing.assert_allclose(late, (title + picture) / 2, atol=1e-6)
    weights = TorchClassifier("title", served["bert"]).weights_mb
    on_disk = (served["bert"].classifier / "model.safetensors").stat().st_size / 1e6
    assert weights == pytest.approx(on_disk, abs=0.01)


def test_pictures_are_decoded_within_the_call(served, requests, monkeypatch):
    seen = []
    monkeypatch.setattr(deploy, "decode", lambda jpeg, size: seen.append(jpeg) or np.zeros((size, size, 3), np.uint8))
    for what in ("title", "late", "joint"):
        TorchClassifier(what, served["modernbert"])(requests.titles[:2], requests.jpegs[:2])
    assert seen == requests.jpegs[:2] * 2


def test_requests_are_products_of_dev_with_their_pictures(toy):
    dev = toy.part("dev").set_index("title")
    requests = deploy.requests_of(toy, n=100)
    assert sorted(requests.titles) == sorted(dev.index)
    for title, jpeg in list(zip(requests.titles, requests.jpegs, strict=True))[:4]:
        image = Image.open(io.BytesIO(jpeg))
        assert (image.format, image.size) == ("JPEG", (toys.SIZE, toys.SIZE))
        assert np.abs(np.asarray(image, int) - toy.images[[dev.image_row[title]]][0]).mean() < 15
    assert Image.open(io.BytesIO(deploy.requests_of(toy, 1, side=100).jpegs[0])).size == (100, 100)
    assert deploy.requests_of(toy, 3) == deploy.requests_of(toy, 3) != deploy.requests_of(toy, 3, seed=1)


@pytest.fixture(scope="module")
def cost(served, requests) -> pd.DataFrame:
    return deploy.measure(served["bert"], requests, (1, 8), repeats=3, memory=False)


def test_the_table_has_a_row_per_contestant_batch_and_device(cost):
    assert list(cost.columns) == ["what", "batch", "device", *deploy.COSTS, "calls", "threads"]
    assert list(zip(cost.batch, cost.what, strict=True)) == [(b, what) for b in (1, 8) for what in deploy.WHAT]
    assert (cost.drop(columns=["what", "device", "peak_mb"]) > 0).all(axis=None)
    assert cost.peak_mb.isna().all()
    assert (cost.p50_ms <= cost.p99_ms).all()
    assert (cost.calls == 3).all()
    table = cost.set_index(["what", "batch"])
    for batch in (1, 8):
        of = {what: table.loc[what, batch] for what in deploy.WHAT}
        for dual in ("late", "joint"):
            for column in ("gflops", "bytes_per_request", "model_mb"):
                assert of[dual][column] > of["title"][column]
        assert of["title"].gflops == of["title_onnx"].gflops == of["title_int8"].gflops == of["title_words"].gflops
        assert of["title_words"].model_mb > of["title"].model_mb
        assert of["late"].bytes_per_request == of["title"].bytes_per_request + of["picture"].bytes_per_request


def test_without_pictures_only_titles_are_measured(served, toy, tmp_path):
    plain = toys.catalogue(tmp_path, pictures=False)
    requests = deploy.requests_of(plain, 4)
    assert requests.jpegs == []
    found = deploy.measure(served["bert"], requests, [2], repeats=1, memory=False)
    assert list(found.what) == ["title", "title_onnx", "title_int8", "title_words"]
    lengths = [len(title.encode()) for title in requests.titles]
    assert (found.bytes_per_request == np.mean(lengths)).all()


def test_contestants_take_turns_on_the_same_products_in_changing_orders(requests, monkeypatch):
    monkeypatch.setattr(deploy, "WARM", 0)
    asked = []
    answers = {what: lambda titles, jpegs, what=what: asked.append((what, titles)) for what in "abc"}
    took = deploy._interleaved(answers, lambda rng: deploy._draw(requests, 2, rng), np.random.default_rng(0), 20, 60)
    rounds = [asked[i : i + 3] for i in range(0, 60, 3)]
    assert all({what for what, _ in turn} == set("abc") for turn in rounds)
    assert all(turn[0][1] == turn[1][1] == turn[2][1] for turn in rounds)
    assert len({tuple(what for what, _ in turn) for turn in rounds}) > 3
    assert {what: len(times) for what, times in took.items()} == dict.fromkeys("abc", 20)
    short = deploy._interleaved(answers, lambda rng: ([], []), np.random.default_rng(0), 20, 0)
    assert {len(times) for times in short.values()} == {3}


def test_times_are_of_a_batch():
    found = deploy._times([0.01] * 98 + [0.02] * 2, batch=4)
    assert found["p50_ms"] == pytest.approx(10)
    assert found["p99_ms"] == pytest.approx(20)
    assert found["items_per_s"] == pytest.approx(4 / 0.0102)


def test_memory_is_of_a_process_of_its_own(served, requests):
    """This process holds torch; one that serves an export does not, whatever its parent holds."""
    peak = deploy.peak_memory("title_onnx", served["bert"], requests, [4, 1])
    assert list(peak) == [1, 4]
    assert 20 < peak[1] <= peak[4] < 400
    assert peak[4] < deploy._peak_mb("cpu")


@pytest.mark.parametrize("what", ["title", "late"])
def test_the_process_is_told_all_it_needs(what, served, requests, monkeypatch):
    """The same call without a process, which would import torch for seconds."""
    told = []

    def here(command, input, env, **_):
        assert command[1:] == ["-m", "icssl_lib.deploy"]
        assert (env["OMP_NUM_THREADS"], "MALLOC_TOP_PAD_" in env) == ("1", False)
        told.append(json.loads(input))
        return SimpleNamespace(returncode=0, stdout="some library's remark\n" + json.dumps(deploy._serve(told[0])))

    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")
    monkeypatch.setattr(deploy.subprocess, "run", here)
    peak = deploy.peak_memory(what, served["modernbert"], requests, [3, 1])
    assert list(peak) == [1, 3]
    assert len(told[0]["jpegs"]) == (6 if what == "late" else 0)


# --- accuracy against cost


def results(methods: list[str]) -> pd.DataFrame:
    rows = [("toy", m, f, s, 0.3 + f / 3 + i / 50) for i, m in enumerate(methods) for f in (0.2, 1.0) for s in (0, 1)]
    return pd.DataFrame(rows, columns=["dataset", "method", "fraction", "seed", "accuracy"])


@pytest.fixture(scope="module")
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


def test_each_method_has_the_cost_of_what_it_is_served_by(cost, study):
    methods = ["origin", "convirt", "tfidf", "image", "dual_joint", "dual_late", "recommended"]
    table = deploy.accuracy_against_cost(cost, results(methods), study)
    assert list(table.fraction.unique()) == [0.2, 1.0]
    first = table[table.fraction == 0.2].set_index("method")
    assert first.what.drop("").to_dict() == {
        "origin": "title", "convirt": "title", "image": "picture", "dual_late": "late", "dual_joint": "joint",
        "recommended": "title_words",
    }  # fmt: skip
    assert set(first.loc[[""], "what"]) == {"title_onnx", "title_int8"}
    assert first.loc[[""], "accuracy"].isna().all()
    assert first.accuracy["convirt"] == pytest.approx(0.3 + 0.2 / 3 + 1 / 50)
    with pytest.warns(UserWarning, match=r"no cost was measured of what serves them: \['recommended'\]"):
        deploy.accuracy_against_cost(cost[cost.what != "title_words"], results(methods), study)
    of = cost[cost.batch == 1].set_index("what")
    for row in table.itertuples():
        assert (row.p50_ms, row.gflops) == (of.p50_ms[row.what], of.gflops[row.what])


def test_the_figure_names_every_design_and_method_and_names_do_not_collide(cost, study):
    methods = [m for m, entry in METHODS.items() if entry.classifier in deploy.SERVES]
    for shown, costs in ((methods, ["p50_ms", "gflops"]), (["tfidf"], ["bytes_per_request"])):
        table = deploy.accuracy_against_cost(cost, results(shown), study)
        for by in costs:
            fig = figures.accuracy_cost(table, by)
            fig.canvas.draw()
            assert len(fig.axes) == 2
            for ax in fig.axes:
                assert "log" in ax.get_xlabel()
                texts = {text.get_text(): text.get_position() for text in ax.texts}
                drawn = [figures.method_name(m) for m in shown if m != "tfidf"]
                assert texts.keys() >= {*deploy.WHAT.values(), *drawn}
                beside = sorted(texts[name][1] for name in drawn if name not in deploy.WHAT.values())
                assert np.all(np.diff(beside) > 0.05)
                above = sorted(x for x, y in texts.values() if y > 1.05)
                assert np.all(np.diff(above) > 0.09)
            assert fig.axes[0].get_ylabel() == "Accuracy on Test (0 to 1)"
            plt.close(fig)
    table = deploy.accuracy_against_cost(cost, results(["origin", "dual_late"]), study)
    said = figures.caption("accuracy_cost", table)
    assert "20% of Train: BERT (origin) 0.367, Title + picture (late) 0.387" in said
    assert "No method of this run has the cost of: Title + TF-IDF, Picture, Title + picture (joint)." in said


# --- the notebook


@pytest.fixture(scope="module")
def ran(served, root, toy, tiny_text, tiny_vision, tmp_path_factory) -> tuple[Path, dict]:
    """The notebook's cells, executed here on a tiny run without dual-input methods; the folder, and its names."""
    from icssl_lib import catalogue

    out = tmp_path_factory.mktemp("run")
    shutil.copytree(served["bert"].classifier, out / "classifiers/toy/convirt/seed0/f100")
    results(["origin", "convirt", "tfidf"]).to_csv(out / "results.csv", index=False)
    config = out / "toy.yaml"
    settings = toys.study(tiny_text, tiny_vision).model_dump(mode="json", exclude_none=True)
    settings["methods"] = ["origin", "convirt", "tfidf"]
    config.write_text(yaml.safe_dump(settings))
    cells = json.loads((root / "notebooks/06_cost.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    given = f"config, out, repeats = {str(config)!r}, {str(out)!r}, 2"
    names: dict = {"display": print}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "open_catalogue", lambda folder: toy)
        patch.setattr(deploy, "export_onnx", lambda folder, to: Path(shutil.copytree(served["bert"].fp32, to)))
        patch.setattr(deploy, "peak_memory", lambda what, *_: dict.fromkeys((1, 32), 100.0 + len(what)))
        for source in (code[0], given, *code[1:]):
            exec(source, names)
    plt.close("all")
    return out, names


def test_the_notebook_runs_on_a_study_without_dual_methods(ran):
    out, names = ran
    written = {"cost.csv", "onnx.csv", *(f"accuracy_cost.{kind}" for kind in ("csv", "png", "svg"))}
    assert {path.name for path in (out / "figures").iterdir()} == written
    cost = pd.read_csv(out / "figures/cost.csv")
    assert list(cost.columns) == ["what", "batch", "device", *deploy.COSTS, "calls", "threads", "dataset"]
    assert set(cost.what) == set(deploy.WHAT)
    assert (cost[deploy.COSTS] > 0).all(axis=None)
    assert set(cost.dataset) == {"toy"}
    exports = pd.read_csv(out / "figures/onnx.csv").set_index("what")
    assert exports.same["title_onnx"] == 1
    assert set(exports.method) == {"convirt"}
    assert (names["times"].xs("title", level="what") == 1).all(axis=None)
    points = names["points"]
    assert set(points[points.accuracy.notna()].method) == {"origin", "convirt"}
    assert sorted(path.name for path in (out / "onnx/toy/convirt").iterdir()) == ["fp32", "int8"]


def test_the_notebook_reads_no_label_of_test(root):
    text = (root / "notebooks/06_cost.ipynb").read_text("utf-8")
    assert 'part(\\"dev\\")' in text
    assert "test" not in text.lower().replace("of test", "").replace("on test", "").replace("latest", "")
