"""What several methods of a study train alike is trained once: the results are those of each method alone."""

import pytest
import toys
from test_variants import with_variants

from icssl_lib import finetune, plan, runs
from icssl_lib.adapt import adapt, save
from icssl_lib.config import RuntimeConfig, load_config
from icssl_lib.finetune import classify_fractions
from icssl_lib.methods import METHODS, trained_alike, trainings

ALIKE = ["origin", "convirt", "recommended", "self_trained", "self_trained_names", "image", "dual_late", "dual_convirt"]


@pytest.fixture
def study(tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, finetune={"keep_classifiers": [1.0]})
    return with_variants(study, named={"of": "convirt", "finetune": {"label_names": True}}).model_copy(
        update={"methods": [*ALIKE, "named"]}
    )


@pytest.fixture
def adapted(study, toy, tmp_path):
    """A function: a run folder of that name that holds ConVIRT's encoder, the same each time."""

    def folder(name):
        save(adapt("convirt", toy, study, 0, tmp_path / name, progress=False),
             runs.piece(tmp_path / name, "encoders", toy.name, "convirt", 0))  # fmt: skip
        return tmp_path / name

    return folder


@pytest.fixture
def trained(monkeypatch):
    """What has been trained, as (kind, whether by a teacher)."""
    calls, train = [], finetune._train

    def counted(model, kind, *rest):
        calls.append((kind, rest[-2] is not None))
        return train(model, kind, *rest)

    monkeypatch.setattr(finetune, "_train", counted)
    return calls


def test_which_methods_of_the_study_train_alike(root):
    study = load_config(root / "config/beyond.yaml")
    found = {m: alike for m in study.methods if (alike := trained_alike(study, m))}
    plain, named = ["convirt", "self_trained", "dual_convirt"], ["recommended", "self_trained_names", "convirt_names"]
    words = ["recommended_origin", "origin_names"]
    student = {"student": ["recommended", "self_trained_names"]}
    assert found == {
        "origin": {"finetune": ["origin", "dual_late"]},
        "image": {"image": ["image", "dual_late"]},
        "dual_late": {"finetune": ["origin", "dual_late"], "image": ["image", "dual_late"]},
        **{m: {"finetune": words} for m in words},
        **{m: {"finetune": plain} for m in plain},
        "convirt_names": {"finetune": named},
        **{m: {"finetune": named} | student for m in ("recommended", "self_trained_names")},
    }
    assert not any(trained_alike(load_config(root / "config/quick.yaml"), m) for m in ("origin", "convirt"))


@pytest.mark.parametrize(
    "changes",
    [
        {"adapt": {"alpha": 0.5}},
        {"finetune": {"lr": 1e-4}},
        {"finetune": {"fractions": [0.5]}},
        {"text": {"max_tokens": 6}},
    ],
)
def test_other_settings_are_another_training(study, changes):
    other = with_variants(study, other={"of": "convirt", **changes})
    assert trainings(other, "other")["finetune"] != trainings(other, "convirt")["finetune"]
    assert trained_alike(other.model_copy(update={"methods": ["convirt", "other"]}), "other") == {}


def test_each_is_trained_once_and_nothing_else_changes(study, toy, adapted, trained):
    alone, together, counts = adapted("alone"), adapted("together"), {}
    expected = {}
    for method in study.methods:
        expected[method] = classify_fractions(
            method, toy, study.model_copy(update={"methods": [method]}), 0, alone, progress=False
        )
    assert not (alone / "trainings").exists()
    assert len(trained) == 2 * 14  # fractions; one each, two for late fusion and for what a teacher taught
    trained.clear()
    for method in study.methods:
        before = len(trained)
        scores, predictions = classify_fractions(method, toy, study, 0, together, progress=False)
        counts[method] = len(trained) - before
        runs.save_record(together, toy, method, 0, study, scores, predictions)
        assert predictions.equals(expected[method][1]), method
        assert scores.drop(columns="seconds").equals(expected[method][0].drop(columns="seconds")), method
        assert set(scores.test_readings) == {1}
    assert counts == {
        "origin": 2, "convirt": 2, "recommended": 4, "self_trained": 2, "self_trained_names": 0, "image": 2,
        "dual_late": 0, "dual_convirt": 2, "named": 0,
    }  # fmt: skip
    assert not list((together / "trainings").rglob("*.safetensors"))  # the last that reads them clears away
    for method in study.methods:
        if METHODS.get(method, METHODS["convirt"]).classifier in ("finetune", "distilled"):
            kept = [runs.piece(run, "classifiers", toy.name, method, 0) / "f100" for run in (alone, together)]
            assert len({(folder / "model.safetensors").read_bytes() for folder in kept}) == 1, method


def test_the_order_is_free_and_the_plan_knows_the_steps(study, toy, adapted, trained):
    out = adapted("backwards")
    backwards = study.model_copy(update={"methods": study.methods[::-1]})
    for method in backwards.methods:
        classify_fractions(method, toy, backwards, 0, out, progress=False)
    assert len(trained) == 14
    trained.clear()
    for method in backwards.methods:  # nothing wrote a record, so weights that several read are there still
        classify_fractions(method, toy, backwards, 0, out, progress=False)
    assert sorted(trained) == [("finetune", True), ("finetune", True), ("image", False), ("image", False)]

    data = {"toy": plan.Data(ssl=60, train=30, dev=15, test=15, classes=4, pictures=120, pairs=60, tokens=5, longest=6,
                             origin="", sample=None)}  # fmt: skip
    jobs = plan.jobs_of(study, data, lambda tokens: plan.costs(study, tokens), 0.001)
    steps = {(j.stage, j.method): j.steps for j in jobs if j.stage in ("teach", "finetune")}
    few, many = 10, 2 * 9 + 2 * 12  # 6 and 30 products in batches of 8, twice; with 60 of the SSL part
    expected = {
        **{("finetune", m): few for m in ("origin", "convirt", "image", "dual_convirt")},
        ("teach", "recommended"): few,
        **{("teach", m): 0 for m in ("self_trained", "self_trained_names")},
        **{("finetune", m): many for m in ("recommended", "self_trained")},
        **{("finetune", m): 0 for m in ("self_trained_names", "dual_late", "named")},
    }
    assert steps == expected
    kinds = {j.method: j.kind for j in jobs if j.stage == "finetune"}
    assert (kinds["dual_convirt"], kinds["dual_late"]) == ("image", "")


def test_a_damaged_file_is_named(study, toy, adapted):
    out = adapted("damaged")
    classify_fractions("convirt", toy, study, 0, out, progress=False)
    for path in (out / "trainings").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=r"trainings.*f020.*the weights cannot be read .*; delete it to train them anew"):
        classify_fractions("self_trained", toy, study, 0, out, progress=False)


def test_several_processes_read_the_weights_of_the_first(study, toy, tmp_path):
    several = {"methods": ["origin"], "runtime": RuntimeConfig(device="cpu", processes=2)}
    study = with_variants(study.model_copy(update=several), twin={"of": "origin", "finetune": {"keep_classifiers": []}})
    first = classify_fractions("origin", toy, study, 0, tmp_path, progress=False)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "trainings").rglob("*.safetensors")}
    assert len(files) == 2
    twin = classify_fractions("twin", toy, study, 0, tmp_path, progress=False)
    columns = ["id", "predicted", "confidence"]
    assert twin[1][columns].equals(first[1][columns])
    assert files == {path: path.stat().st_mtime_ns for path in files}
