"""What a study's jobs are made of: the strict papermill, pieces, records, and processes that end together."""

import errno
import json
import os
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest
import torch
import toys
from safetensors.torch import load_file
from toys import flip

from icssl_lib import dag, runs, stages
from icssl_lib.config import AdaptConfig, Run, RuntimeConfig, Study, Variant
from icssl_lib.dag import RunError, own_gpus
from icssl_lib.encoders import ModelError
from icssl_lib.notebooks import execute, parameters_of, values_of
from icssl_lib.runs import collect, digest, path_of, resolved, save_record
from icssl_lib.stages import adapt_seeds, classify_seeds


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`execute` changes the environment of its process."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", os.environ.get("JUPYTER_RUNTIME_DIR", ""))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv(dag.STUDY, raising=False)


def wait_until(true, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_parameters_of_the_studys_notebooks(root):
    notebooks = sorted((root / "notebooks").glob("0*.ipynb"))
    assert len(notebooks) >= 6
    assert all({"config", "out"} <= set(parameters_of(notebook)) for notebook in notebooks)
    for name in ("02_adapt", "03_finetune"):
        known = {"config", "out", "dataset", "method", "seeds"}
        assert set(parameters_of(root / f"notebooks/{name}.ipynb")) == known


def test_a_notebook_that_is_not_there_or_not_tagged_is_refused(root, tmp_path):
    with pytest.raises(RunError, match=r"no such notebook; did you mean '02_adapt\.ipynb'\?"):
        parameters_of(root / "notebooks/02_adopt.ipynb")
    notebook = toys.write_notebook(tmp_path / "a.ipynb", "seed = 0", tag=False)
    with pytest.raises(RunError, match="no parameters; tag the first code cell `parameters`"):
        execute(notebook, tmp_path / "out.ipynb", {"seed": 1})


def test_unknown_parameter_gives_the_nearest_and_nothing_runs(root, tmp_path, capsys):
    notebook, output = root / "notebooks/02_adapt.ipynb", tmp_path / "out.ipynb"
    with pytest.raises(RunError, match=r"02_adapt\.ipynb has no parameter 'seads'; did you mean 'seeds'\?"):
        execute(notebook, output, {"seads": [1]})
    for wrong, message in (("seads=[1]", "did you mean 'seeds'?"), ("seeds", "expected name=value")):
        assert runs.main(["execute", str(notebook), str(output), wrong]) == 1
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_is_what_its_default_is(root):
    """A path with " #" is no YAML comment, and Norway's shop is called "no"."""
    texts = {"config": "/home/ann/course #2/a: b.yaml", "dataset": "no", "seeds": "[7, 8]", "method": "a=b"}
    found = values_of(root / "notebooks/02_adapt.ipynb", [f"{name}={value}" for name, value in texts.items()])
    assert found == texts | {"seeds": [7, 8]}


@pytest.fixture
def job(tmp_path):
    """Runs a notebook of these sources in a process of its own."""

    def start(*sources: str, **parameters) -> subprocess.Popen:
        notebook = toys.write_notebook(tmp_path / "a.ipynb", *sources)
        command = [sys.executable, "-m", "icssl_lib.runs", "execute", notebook, tmp_path / "deep/out.ipynb"]
        pairs = [f"{name}={value}" for name, value in parameters.items()]
        return subprocess.Popen([*command, *pairs], stderr=subprocess.PIPE, text=True)

    return start


def test_notebook_runs_with_its_parameters_and_shows_every_figure(job, tmp_path):
    """Also where this process draws to no screen (MPLBACKEND=Agg)."""
    plot = "import matplotlib.pyplot as plt\nplt.plot([0, seed]);"
    process = job("seed = 0\nname = 'a'", "print(seed + 1, name)", plot, plot, seed=41)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.ipynb"]
    cells = nbformat.read(tmp_path / "deep/out.ipynb", 4).cells
    assert cells[2].outputs[0].text == "42 a\n"
    assert all(any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in cells[3:])


def test_a_kernel_that_dies_is_told(job):
    process = job("seed = 0", "import os\nos._exit(9)")
    assert "error: a.ipynb: the kernel died; out of memory?" in process.communicate(timeout=120)[1]
    assert process.returncode == 1


def test_a_kernel_ends_with_its_job(job, tmp_path):
    source = "import os, pathlib, time\npathlib.Path(file).write_text(str(os.getpid()))\ntime.sleep(300)"
    process, file = job("file = ''", source, file=tmp_path / "pid"), tmp_path / "pid"
    wait_until(lambda: file.exists() and file.read_text())
    process.kill()
    process.communicate()
    wait_until(lambda: not psutil.pid_exists(int(file.read_text())), seconds=10)


def test_failing_notebook_stays_as_failed_and_leaves_no_output(tmp_path, capsys):
    notebook = toys.write_notebook(tmp_path / "a.ipynb", "seed = 0", "raise ValueError('the picture is gone')")
    output = tmp_path / "out.ipynb"
    assert runs.main(["execute", str(notebook), str(output), "seed=1"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: a.ipynb: ValueError: the picture is gone")
    assert str(tmp_path / "out.failed.ipynb") in error
    assert not output.exists()
    failed = nbformat.read(tmp_path / "out.failed.ipynb", 4)
    assert any(o.output_type == "error" for cell in failed.cells for o in cell.get("outputs", []))


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision, finetune={"fractions": [0.2, 1.0]})


def changed(study: Study, **finetune) -> Study:
    return study.model_copy(update={"finetune": study.finetune.model_copy(update=finetune)})


@pytest.fixture
def trained(monkeypatch):
    """What is really trained from here on: runs, with the fraction."""
    calls, adapt, classify = [], stages.adapt, stages.classify
    monkeypatch.setattr(stages, "adapt", lambda run, *rest: calls.append(str(run)) or adapt(run, *rest))
    monkeypatch.setattr(
        stages, "classify", lambda run, f, *rest, **more: calls.append(f"{run} {f}") or classify(run, f, *rest, **more)
    )
    return calls


def test_a_job_goes_on_from_its_finished_pieces(study, toy, trained, tmp_path, monkeypatch):
    whole = classify_seeds("toy", "origin", [0, 1], toy, study, tmp_path / "undisturbed")
    trained.clear()
    classify = stages.classify

    def killed(run, fraction, *rest, **more):
        if (run.seed, fraction) == (1, 0.2):
            raise OSError(errno.ENOSPC, "no space left on device")
        return classify(run, fraction, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "classify", killed)
        with pytest.raises(OSError, match="no space"):
            classify_seeds("toy", "origin", [0, 1], toy, study, tmp_path)
    assert trained == ["toy origin seed 0 0.2", "toy origin seed 0 1.0"]
    assert list(path_of(tmp_path, "pieces", Run("toy", "origin", 1)).iterdir()) == []  # nothing half-written
    trained.clear()
    found = classify_seeds("toy", "origin", [0, 1], toy, study, tmp_path)
    assert trained == ["toy origin seed 1 0.2", "toy origin seed 1 1.0"]
    for ours, theirs in zip(found, whole, strict=True):
        pd.testing.assert_frame_equal(ours.drop(columns="seconds", errors="ignore"),
                                      theirs.drop(columns="seconds", errors="ignore"))  # fmt: skip
    record = json.loads(path_of(tmp_path, "records", Run("toy", "origin", 1)).with_suffix(".json").read_text())
    assert [row["fraction"] for row in record["fractions"]] == [0.2, 1.0]
    assert record["settings"]["finetune"] == study.finetune.model_dump(mode="json")
    assert {"python", "torch", "transformers", "cpu", "device"} <= set(record["machine"])


def test_only_what_is_new_or_other_is_trained(study, toy, trained, tmp_path):
    few = changed(study, fractions=[1.0])
    classify_seeds("toy", "origin", [0], toy, few, tmp_path)
    trained.clear()
    classify_seeds("toy", "origin", [0, 1], toy, few, tmp_path)
    assert trained == ["toy origin seed 1 1.0"]
    trained.clear()
    scores, _ = classify_seeds("toy", "origin", [0], toy, study, tmp_path)
    assert trained == ["toy origin seed 0 0.2"]
    assert list(scores.fraction) == [0.2, 1.0]
    trained.clear()
    classify_seeds("toy", "origin", [0], toy, changed(study, fractions=[1.0], epochs=1), tmp_path)
    assert trained == ["toy origin seed 0 1.0"]
    folders = sorted(path.name[:4] for path in path_of(tmp_path, "pieces", Run("toy", "origin", 0)).iterdir())
    assert folders == ["f020", "f100"]  # the stale one is gone


def test_encoders_are_pieces_and_a_new_one_makes_its_classifiers_stale(study, toy, trained, tmp_path):
    history, space = adapt_seeds("toy", "simcse", [0, 1], toy, study, tmp_path)
    assert set(history.seed) == set(space.seed) == {0, 1}
    folder, few = path_of(tmp_path, "encoders", Run("toy", "simcse", 0)), changed(study, fractions=[1.0])
    assert {"config.json", "model.safetensors", "tokenizer.json", "history.csv"} <= {p.name for p in folder.iterdir()}
    classify_seeds("toy", "simcse", [0], toy, few, tmp_path)
    trained.clear()
    for name in ("config.json", "towers.safetensors"):  # as Snakemake does before it runs a job again
        (folder / name).unlink()
    pd.testing.assert_frame_equal(adapt_seeds("toy", "simcse", [0, 1], toy, study, tmp_path)[0], history)
    classify_seeds("toy", "simcse", [0], toy, few, tmp_path)
    assert trained == []
    other = study.model_copy(update={"adapt": AdaptConfig(**study.adapt.model_dump() | {"temperature": 0.2})})
    adapt_seeds("toy", "simcse", [0], toy, other, tmp_path)
    classify_seeds("toy", "simcse", [0], toy, few, tmp_path)
    assert trained == ["toy simcse seed 0", "toy simcse seed 0 1.0"]


def test_a_damaged_piece_is_made_again_and_a_damaged_encoder_refused(study, toy, trained, tmp_path):
    few, run = changed(study, fractions=[1.0]), Run("toy", "simcse", 0)
    adapt_seeds("toy", "simcse", [0, 1], toy, study, tmp_path)
    weights = path_of(tmp_path, "encoders", run) / "model.safetensors"
    whole = weights.read_bytes()
    flip(weights)  # and with it the piece, of which it is a link
    damage = r"model\.safetensors is not as it was written"
    with pytest.warns(UserWarning, match=damage), pytest.raises(ModelError, match=damage):
        classify_seeds("toy", "simcse", [0], toy, few, tmp_path)
    trained.clear()
    with pytest.warns(UserWarning, match=damage):
        adapt_seeds("toy", "simcse", [0, 1], toy, study, tmp_path)
    assert trained == ["toy simcse seed 0"]
    assert weights.read_bytes() == whole
    scores, _ = classify_seeds("toy", "simcse", [0], toy, few, tmp_path)
    (piece,) = path_of(tmp_path, "pieces", run).glob("f100-*")
    flip(piece / "scores.json")
    trained.clear()
    with pytest.warns(UserWarning, match=r"scores\.json is not as it was written"):
        found, _ = classify_seeds("toy", "simcse", [0], toy, few, tmp_path)
    assert trained == ["toy simcse seed 0 1.0"]
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), scores.drop(columns="seconds"))


def test_adaptation_starts_from_the_encoder_of_the_method_before_it(study, toy, trained, tmp_path):
    """Bit for bit: a learning rate of 1e-30 changes no weight, so that where it started from is what it leaves."""
    study = study.model_copy(update={"variants": {"still": Variant(of="mlm_simcse", adapt={"lr": 1e-30})}})

    def weights(method: str, seed: int) -> dict[str, torch.Tensor]:
        return load_file(path_of(tmp_path, "encoders", Run("toy", method, seed)) / "model.safetensors")

    spaces = {method: adapt_seeds("toy", method, [0, 1], toy, study, tmp_path)[1] for method in ("mlm", "still")}
    adapt_seeds("toy", "mlm_simcse", [0, 1], toy, study, tmp_path)
    for seed in (0, 1):
        start, still, moved = (weights(method, seed) for method in ("mlm", "still", "mlm_simcse"))
        assert start.keys() == still.keys() == moved.keys()
        assert all(torch.equal(still[name], w) for name, w in start.items())
        assert not all(torch.equal(moved[name], w) for name, w in start.items())
    assert not all(torch.equal(w, weights("mlm", 1)[name]) for name, w in weights("mlm", 0).items())
    of_mlm, of_still = (
        s.query("measure == 'title uniformity'").set_index(["seed", "when"]).value for s in spaces.values()
    )
    assert list(of_still[:, "before"]) == list(of_mlm[:, "after"])
    trained.clear()
    adapt_seeds("toy", "mlm_simcse", [0, 1], toy, study, tmp_path)
    assert trained == []
    longer = study.model_copy(update={"adapt": study.adapt.model_copy(update={"epochs": 2})})
    adapt_seeds("toy", "mlm", [0], toy, longer, tmp_path)
    adapt_seeds("toy", "mlm_simcse", [0, 1], toy, study, tmp_path)
    assert trained == ["toy mlm seed 0", "toy mlm_simcse seed 0"]  # of seed 1 nothing has changed


def test_models_named_pretrained_become_folders(tmp_path):
    genre = {"source": "synthetic", "genre": "beauty"}
    study = Study.model_validate({"study": "a", "datasets": {"a": genre}, "pretrain": {}, "vision": {"model": "vit"}})
    found = resolved(study, tmp_path)
    assert (found.text.model, found.vision.model) == (str(tmp_path / "pretrained/text"), "vit")
    assert resolved(found, tmp_path / "other") == found


def test_collect_writes_all_rows_or_names_the_record_that_is_missing(tmp_path):
    genre = {"source": "synthetic", "genre": "beauty"}
    settings = {"datasets": {"zeta": genre, "alpha": genre}, "methods": ["origin"], "seeds": [1, 0], "pretrain": {}}
    study = Study.model_validate({"study": "made-up"} | settings)
    for run in (Run(d, "origin", k) for d in ("alpha", "zeta") for k in (0, 1)):
        row = dict.fromkeys(runs.RESULTS, 1 / 3) | {"dataset": run.dataset, "seed": run.seed}
        path = path_of(tmp_path, "records", run).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"split_hash": f"of {run.dataset}", "fractions": [row, row]}))
    collect(study, tmp_path)
    results = pd.read_csv(tmp_path / "results.csv")
    assert list(results.columns) == runs.RESULTS
    assert list(results.dataset + results.seed.astype(str)) == [d + k for d in ("zeta", "alpha") for k in "1100"]
    assert list(results.split_hash) == ["of zeta"] * 4 + ["of alpha"] * 4
    assert set(results.accuracy) == {0.333333}
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"zeta/origin/seed1\.json: no such record; run notebook 03"):
        collect(study, tmp_path)


def test_a_flipped_bit_in_a_record_is_found_and_results_say_what_the_records_say(study, tmp_path):
    study, row = study.model_copy(update={"methods": ["origin"], "seeds": [0]}), dict.fromkeys(runs.RESULTS, 1 / 3)
    found, run = {"split_hash": "0" * 16, "fractions": [row]}, Run("toy", "origin", 0)
    save_record(run, study, tmp_path, found, pd.DataFrame({"id": list("abc")}))
    collect(study, tmp_path)
    whole = (tmp_path / "results.csv").read_bytes()
    flip(tmp_path / "results.csv")
    collect(study, tmp_path)
    written = (tmp_path / "results.csv").stat().st_mtime_ns
    assert (tmp_path / "results.csv").read_bytes() == whole
    collect(study, tmp_path)  # nothing has changed: no figure is to be drawn again
    assert (tmp_path / "results.csv").stat().st_mtime_ns == written
    path = path_of(tmp_path, "records", run).with_suffix(".json")
    for at in (0, 30, path.stat().st_size // 2, path.stat().st_size - 9):
        flip(path, at)
        with pytest.raises(RunError, match=r"seed0\.json: not as it was written; delete it"):
            collect(study, tmp_path)
        flip(path, at)
    table = path_of(tmp_path, "predictions", run).with_suffix(".parquet")
    flip(table, 40)
    with pytest.raises(OSError, match="CRC"):
        pd.read_parquet(table, page_checksum_verification=True)


def test_digest_sees_each_setting_and_nothing_else():
    assert digest(AdaptConfig()) == digest(AdaptConfig(epochs=50)) != digest(AdaptConfig(epochs=49))
    assert digest(AdaptConfig(), 1, "a") == digest(AdaptConfig(), 1, "a") != digest("a", 1, AdaptConfig())
    assert digest(RuntimeConfig(checkpoint_minutes=1, job_per="seed")) == digest(RuntimeConfig())  # change no result


def test_a_log_is_followed_to_its_last_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("9 of 9 steps (of an earlier call) done\n")
    code = "import time\nfor i in range(3): print(f'{i + 1} of 3 steps (x%) done', flush=True); time.sleep(0.3)\n"
    code += "print('Error in rule a:\\n    jobid: 1\\n    log: logs/a.log (check it)', end='')"
    with path.open("a") as log, path.open() as reader:
        reader.seek(0, os.SEEK_END)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log)
        jobs, failed, last = dag.follow(process, reader, "toy")
    assert (jobs, failed) == (3, ["logs/a.log"])
    assert last.endswith("Error in rule a: jobid: 1 log: logs/a.log (check it)")


def test_jobs_have_gpus_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-b,7")  # names are passed on as they are
    monkeypatch.setenv(dag.STUDY, str(os.getpid()))
    code = "import os, sys, time; from pathlib import Path; from icssl_lib.dag import own_gpus\n"
    code += "with own_gpus(1, Path(sys.argv[1])): print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "4\n"
        with pytest.raises(RunError, match="3 GPUs are needed, 2 of 3 are free"), own_gpus(3, tmp_path):
            pytest.fail("a GPU was given twice")
    finally:
        other.kill()  # which sets its GPU free
        other.communicate()
    named = "4,GPU-b,7"
    for visible, devices, count, expected in ((named, 0, 2, "4,GPU-b"), (named, 0, 0, named), ("", 2, 1, "0"),
                                              ("", 0, 1, "")):  # the last: no GPU, nothing to share out  # fmt: skip
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr("torch.cuda.device_count", lambda n=devices: n)
        with own_gpus(count, tmp_path):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
