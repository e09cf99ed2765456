"""What several methods of a study train alike is trained once: the results are those of each method alone."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import toys
from test_scale import Killed
from test_variants import with_variants

from icssl_lib import finetune, plan, runs
from icssl_lib.adapt import adapt, save
from icssl_lib.config import RuntimeConfig, load_config
from icssl_lib.finetune import classify_fractions
from icssl_lib.methods import METHODS, trained_alike

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

    def counted(given, model, tokenizer, read, shown, soft, accelerator):
        calls.append((given.kind, soft is not None))
        return train(given, model, tokenizer, read, shown, soft, accelerator)

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
    ("of", "changes", "alike"),
    [
        ("convirt", {"adapt": {"alpha": 0.5}}, set()),
        ("convirt", {"finetune": {"lr": 1e-4}}, set()),
        ("convirt", {"finetune": {"fractions": [1.0], "keep_classifiers": []}}, set()),
        ("convirt", {"finetune": {"label_noise": 0.1}}, set()),
        ("convirt", {"finetune": {"uda_weight": 1.0}}, set()),
        ("convirt", {"finetune": {"label_names": True}}, set()),
        ("convirt", {"finetune": {"keep_classifiers": [], "neighbours": 3}}, {"finetune"}),
        ("origin", {"text": {"max_tokens": 6}}, set()),
        ("dual_late", {"vision": {"image_size": 16}}, {"finetune"}),
        ("dual_late", {"finetune": {"label_names": True}}, {"image"}),  # which names have none of
        ("dual_joint", {"finetune": {"keep_classifiers": []}}, {"joint"}),
        ("distilled", {"finetune": {"keep_classifiers": []}}, {"finetune", "image", "student"}),
        ("self_trained", {"finetune": {"label_names": True}}, set()),
    ],
)
def test_what_changes_a_training_makes_it_another(study, of, changes, alike):
    other = with_variants(study, other={"of": of, **changes}).model_copy(update={"methods": [of, "other"]})
    found = trained_alike(other, "other")
    assert found == {role: [of, "other"] for role in alike}
    assert trained_alike(other, of) == found


def test_a_student_is_of_its_teacher(study):
    study = study.model_copy(update={"methods": ["distilled", "self_trained", "dual_convirt"]})
    assert trained_alike(study, "self_trained") == {"finetune": study.methods}
    assert trained_alike(study, "distilled") == {"finetune": study.methods, "image": ["distilled", "dual_convirt"]}


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
    names = [p.name for p in (out / "trainings" / "toy" / "seed0").iterdir()]
    assert len(names) == len({name for m in backwards.methods for name in trained_alike(backwards, m)}) + 2 == 5

    data = {"toy": plan.Data(ssl=60, train=30, dev=15, test=15, classes=4, pictures=120, pairs=60, tokens=5, longest=6,
                             origin="", sample=None)}  # fmt: skip
    jobs = plan.jobs_of(study, data, lambda tokens: plan.costs(study, tokens), 0.001)
    steps = {(j.stage, j.method): j.steps for j in jobs if j.stage in ("teach", "finetune")}
    few, many = 10, 2 * 9 + 2 * 12  # 6 and 30 products in batches of 8, twice; with 60 of the SSL part
    expected = {
        **{("finetune", m): few for m in ("origin", "convirt", "image", "dual_convirt")},
        ("teach", "recommended"): few,
        ("teach", "self_trained"): 0,
        **{("finetune", m): many for m in ("recommended", "self_trained")},
        **{("finetune", m): 0 for m in ("self_trained_names", "dual_late", "named")},
    }
    assert steps == expected
    kinds = {j.method: j.kind for j in jobs if j.stage == "finetune"}
    assert (kinds["dual_convirt"], kinds["dual_late"]) == ("image", "")
    weights = {j.method: j.disk for j in jobs if j.stage == "finetune"}
    tiny = 4 * plan.costs(study, 6)["text"].params
    assert weights["convirt"] - weights["named"] == pytest.approx(2 * tiny)  # two fractions of it are read by others


def test_a_damaged_file_is_named(study, toy, adapted):
    out = adapted("damaged")
    classify_fractions("convirt", toy, study, 0, out, progress=False)
    for path in (out / "trainings").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=r"trainings.*f020.*the weights cannot be read .*; delete it to train them anew"):
        classify_fractions("self_trained", toy, study, 0, out, progress=False)


@pytest.fixture
def twins(study):
    """Two methods that train the same, and start from the encoder as it comes."""
    alone = study.model_copy(update={"methods": ["origin"]})
    return with_variants(alone, twin={"of": "origin", "finetune": {"keep_classifiers": []}})


@pytest.mark.parametrize("changed", ["nothing", "catalogue", "threads", "precision", "graphs"])
def test_weights_are_those_of_this_catalogue_and_this_machine(changed, twins, toy, tmp_path, trained):
    catalogue = replace(toy, folder=tmp_path)
    ingested = tmp_path / "catalogue.json"
    ingested.write_text("{}")
    classify_fractions("origin", catalogue, twins, 0, tmp_path, progress=False)
    runtime = {"threads": {"threads": 2}, "precision": {"fast": False}, "graphs": {"cuda_graphs": False}}.get(changed)
    if runtime:
        twins = twins.model_copy(update={"runtime": RuntimeConfig(device="cpu", **runtime)})
    if changed == "catalogue":  # a label was mended, say: ids and titles, hence the split, are the same
        os.utime(ingested, ns=(1, 1))
    trained.clear()
    classify_fractions("twin", catalogue, twins, 0, tmp_path, progress=False)
    assert len(trained) == (0 if changed == "nothing" else 2)


def test_weights_stay_until_all_records_are_newer(twins, toy, tmp_path, trained):
    def run(method):
        scores, predictions = classify_fractions(method, toy, twins, 0, tmp_path, progress=False)
        runs.save_record(tmp_path, toy, method, 0, twins, scores, predictions)
        return len(list((tmp_path / "trainings").rglob("*.safetensors")))

    assert (run("origin"), run("twin"), len(trained)) == (2, 0, 2)
    # Once more, as after a change of settings: the twin's record is of before, so its weights are kept for it.
    assert (run("origin"), len(trained)) == (2, 4)
    assert (run("twin"), len(trained)) == (0, 4)
    # Two that end at once may each see the other without a record: what they leave goes with the table.
    assert run("origin") == 2
    runs.collect(twins.model_copy(update={"datasets": {"toy": twins.datasets["toy"]}}), tmp_path)
    assert not (tmp_path / "trainings").exists()


def test_killed_after_its_weights_were_written_it_reads_them(twins, toy, tmp_path, monkeypatch, trained):
    expected = classify_fractions("origin", toy, twins, 0, tmp_path / "a", progress=False)

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "metrics_of", die)
        with pytest.raises(Killed):
            classify_fractions("origin", toy, twins, 0, tmp_path / "b", progress=False)
    trained.clear()
    scores, predictions = classify_fractions("origin", toy, twins, 0, tmp_path / "b", progress=False)
    assert len(trained) == 1  # the second fraction
    assert predictions.equals(expected[1])
    assert scores.drop(columns="seconds").equals(expected[0].drop(columns="seconds"))


def test_two_that_write_one_file_do_not_meet(tmp_path):
    model, path = torch.nn.Linear(300, 300), tmp_path / "weights" / "f005.safetensors"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: finetune.save_weights(model, path), range(40)))
    other = torch.nn.Linear(300, 300)
    finetune.load_weights(other, path)
    assert torch.equal(other.weight, model.weight)
    assert list(path.parent.iterdir()) == [path]


def test_several_processes_read_the_weights_of_the_first(twins, toy, tmp_path):
    study = twins.model_copy(update={"runtime": RuntimeConfig(device="cpu", processes=2)})
    first = classify_fractions("origin", toy, study, 0, tmp_path, progress=False)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "trainings").rglob("*.safetensors")}
    assert len(files) == 2
    twin = classify_fractions("twin", toy, study, 0, tmp_path, progress=False)
    columns = ["id", "predicted", "confidence"]
    assert twin[1][columns].equals(first[1][columns])
    assert files == {path: path.stat().st_mtime_ns for path in files}
