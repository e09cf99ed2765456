"""The whole DAG on config/smoke.yaml, run once: what it leaves, and what happens when it is run again or killed."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from kill_study import kill_often, numbers
from toys import flip

from icssl_lib import dag, runs
from icssl_lib.catalogue import open_catalogue
from icssl_lib.config import load_config
from icssl_lib.encoders import embed_titles, load_text
from icssl_lib.files import locked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the study's processes are forks")


def run(config: Path, out: Path, *options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "icssl_lib.runs", "study", str(config), "--out", str(out), *options]
    environment = os.environ | {"PATH": path + os.environ["PATH"]}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env=environment, cwd=dag.ROOT
    )


@pytest.fixture(scope="session")
def config(root) -> Path:
    return root / "config/smoke.yaml"


@pytest.fixture(scope="session")
def study(config):
    return load_config(config)


@pytest.fixture(scope="session")
def said(config, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    out = tmp_path_factory.mktemp("study") / "Ann's class #2 {smoke}: a folder as people name them"
    done = run(config, out)
    assert done.returncode == 0, done.stderr
    done.out = out
    return done


@pytest.fixture(scope="session")
def out(said) -> Path:
    """The run folder of the finished study."""
    return said.out


def changed(config: Path, path: Path, **sections) -> Path:
    """A configuration beside which some values are others."""
    raw = yaml.safe_load(config.read_text())
    for name, value in sections.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) and name != "datasets" else value
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="session")
def problems(root, study):
    """What the check of CI says of a run folder: rows, files, executed notebooks, pages alone, accuracies anew."""
    check = runpy.run_path(str(root / ".ci/check_study.py"))["problems"]
    return lambda out, **options: list(check(study, out, **options))


def test_all_is_there(study, said, out, problems):
    assert problems(out, rows=16) == []
    results = pd.read_csv(out / "results.csv")
    keys = [(m, k, f) for m in study.methods for k in study.seeds for f in study.finetune.fractions]
    assert list(results[["method", "seed", "fraction"]].itertuples(index=False, name=None)) == keys
    assert results.accuracy.nunique() > 5  # models that all say the same would prove little below
    notebooks = sorted((out / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 2 + 1 + 2 + 4 + 2 + 1
    for path in notebooks:
        outputs = [o for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
        assert not any(output.output_type == "error" for output in outputs), path.name
        assert any("image/png" in output.get("data", {}) for output in outputs), path.name
    assert [
        p for p in out.rglob("*") if re.search(r"\.part|\.failed|\.pt$", p.name) and ".snakemake" not in p.parts
    ] == []
    assert "Table 2. Test accuracy" in said.stdout
    assert f"In {out}:" in said.stdout
    assert "Traceback" not in said.stderr


def test_the_check_sees_what_is_missing_or_wrong(out, problems, tmp_path):
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".snakemake", "pieces", "pretrained", "catalogues", "explore")
    shutil.copytree(out, copy, copy_function=os.link, ignore=ignored)
    assert problems(copy) == []
    assert len(problems(copy, rows=216)) == 1
    assert len(problems(copy, gain=0.9)) >= 1
    results, page = "results.csv", "report/index.html"
    for name, old, new in [
        *((f"{path}", None, None) for path in (results, page, "figures/figure5.csv", "notebooks/04_table2.html")),
        ("predictions/beauty/origin/seed0.parquet", None, None),
        ("classifiers/beauty/convirt/seed0/f100/config.json", None, None),
        ("encoders/beauty/convirt/seed1/model.safetensors", None, None),
        (results, "beauty,convirt,0.1", "beauty,convirt,0.25"),
        (results, r"(beauty,convirt,1.0+,0,\d+),0.", r"\1,1."),
        (results, r"(beauty,convirt,1.0+,0,\d+),[^,]+,", r"\1,,"),
        (results, "macro_f1", "f1"),
        (results, "[0-9a-f]{16,}", "0123456789abcdef"),
        ("notebooks/03_finetune-beauty-origin.ipynb", r'"execution_count": \d+', '"execution_count": null'),
        ("records/beauty/origin/seed0.json", '"test_readings": 1', '"test_readings": 2'),
        (page, "Figure 5", "Figure"),
        (page, "<body", "<script src=x.js></script><body"),
    ]:
        path = copy / name
        content = path.read_bytes()
        path.unlink()
        if old:
            text, n = re.subn(old, new, content.decode(), count=0 if old.startswith("Fig") else 1)
            assert n, (name, old)
            path.write_text(text)
        assert problems(copy), (name, old)
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def f1(label: list[str], predicted: list[str], of: str) -> float:
    hits = sum(a == b == of for a, b in zip(label, predicted, strict=True))
    return 2 * hits / (label.count(of) + predicted.count(of))


def test_every_metric_follows_from_predictions(out):
    """Head and tail counted anew, by the definition: the fewest labels that hold 80% of Train."""
    catalogue = open_catalogue(out / "catalogues/beauty")
    counts, head = Counter(catalogue.part("train").label), []
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        if sum(counts[h] for h in head) >= 0.8 * counts.total():
            break
        head.append(name)
    test = catalogue.part("test")
    assert 0 < len(head) < len(set(test.label))
    for row in pd.read_csv(out / "results.csv").itertuples():
        table = pd.read_parquet(out / f"predictions/{row.dataset}/{row.method}/seed{row.seed}.parquet")
        table = table[table.fraction == row.fraction]
        assert list(table.id) == list(test.id)
        label, predicted = list(table.label), list(table.predicted)
        assert label == list(test.label)
        per_class = {name: f1(label, predicted, name) for name in set(label)}
        in_head = [value for name, value in per_class.items() if name in head]
        in_tail = [value for name, value in per_class.items() if name not in head]
        expected = [np.mean(table.label == table.predicted), np.mean(list(per_class.values()))]
        found = [row.accuracy, row.macro_f1, row.head_macro_f1, row.tail_macro_f1]
        assert found == pytest.approx([*expected, np.mean(in_head), np.mean(in_tail)], abs=1e-6), row


def test_classifiers_load_and_predict_as_recorded(out):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    catalogue = open_catalogue(out / "catalogues/beauty")
    test, folders = catalogue.part("test"), sorted(out.glob("classifiers/*/*/*/*"))
    assert len(folders) == 3 * 2
    for folder in folders:
        *_, method, seed, fraction = folder.parts
        assert fraction == "f100"
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert list(model.config.id2label.values()) == catalogue.labels
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer(list(test.title), truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**tokens).logits.softmax(-1).max(-1)
        table = pd.read_parquet(out / f"predictions/beauty/{method}/{seed}.parquet")
        table = table[table.fraction == 1.0]
        assert [catalogue.labels[i] for i in best.indices] == list(table.predicted), folder
        assert best.values.tolist() == pytest.approx(list(table.confidence), abs=1e-4)


def test_encoders_load_and_sentence_transformers_pools_as_we_do(study, out):
    from sentence_transformers import SentenceTransformer

    titles = list(open_catalogue(out / "catalogues/beauty").part("dev").title)
    folders, seen = sorted(out.glob("encoders/*/*/*")), []
    assert len(folders) == 2 * 2
    for folder in folders:
        ours = embed_titles(*load_text(str(folder)), titles, study.text)  # by AutoModel and AutoTokenizer
        theirs = SentenceTransformer(str(folder), device="cpu").encode(titles)
        assert np.allclose(ours.numpy(), theirs, atol=1e-4), folder
        assert not any(np.allclose(theirs, other, atol=1e-3) for other in seen)
        seen.append(theirs)


def test_second_call_does_nothing_and_two_at_a_time_are_refused(config, out):
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and ".snakemake" not in p.parts}
    done = run(config, out)
    assert done.returncode == 0, done.stderr
    assert "Table 2. Test accuracy" in done.stdout
    changed = {path.name for path, then in files.items() if path.stat().st_mtime_ns != then}
    assert changed <= {"study.log", ".lock", "wall.json"}
    with locked(out / ".lock"):
        done = run(config, out)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "a study runs in this folder already" in done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"finetune": {"epochs": 3}}, {"finetune": 4}),
        ({"adapt": {"epochs": 3}}, {"adapt": 2, "finetune": 2}),
        ({"pretrain": {"text_epochs": 2}}, {"pretrain": 2, "adapt": 2, "finetune": 3}),  # not TF-IDF
        ({"split_seed": 1}, {"catalogue": 1, "adapt": 2, "finetune": 4}),
        ({"seeds": [0, 1, 2]}, {"adapt": 2, "finetune": 4}),  # which train the third seed alone
    ],
)
def test_only_what_a_setting_touches_runs_again(change, expected, config, out, tmp_path):
    command = dag.snakemake(changed(config, tmp_path / "changed.yaml", **change), out, "--dry-run", "--quiet", "rules")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE)}
    assert (jobs["results"], jobs["report"]) == (1, 1)
    training = ("pretrain", "catalogue", "adapt", "finetune")
    assert {rule: jobs[rule] for rule in training if rule in jobs} == expected


def test_a_copied_folder_goes_on_with_a_job_per_seed(config, out, tmp_path):
    """An encoder and two records are made anew from the pieces, in three jobs of one seed: nothing is trained."""
    seeds, copy = {"runtime": {"job_per": "seed"}, "methods": ["origin", "convirt"]}, tmp_path / "copy"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("notebooks", "encoders", "records"))
    command = dag.snakemake(changed(config, tmp_path / "seeds.yaml", **seeds), copy, "--cores", "2")
    records = [f"records/beauty/{method}/seed1.json" for method in seeds["methods"]]
    done = subprocess.run([*command, *records], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jobs = ("02_adapt-beauty-convirt", "03_finetune-beauty-origin", "03_finetune-beauty-convirt")
    assert {path.stem for path in (copy / "notebooks").glob("*seed*.ipynb")} == {f"{job}-seed1" for job in jobs}
    mine = pd.DataFrame([row for record in records for row in json.loads((copy / record).read_text())["fractions"]])
    results = pd.read_csv(out / "results.csv").drop(columns="split_hash")
    theirs = results[results.method.isin(seeds["methods"]) & (results.seed == 1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[theirs.columns], theirs, atol=1e-6)  # seconds as well: nothing was trained


def test_through_a_profile_the_jobs_are_submitted(config, tmp_path):
    """Up to the cluster's own commands, which here refuse: the DAG is read without a number of cores, which a dry run
    would give it. `make slurm` runs the whole study so."""
    commands, asked = tmp_path / "bin", tmp_path / "asked"
    folder = tmp_path / "Ann's class #2 {smoke}: 100% 'so'"
    for made in (commands, folder):
        made.mkdir()
    for name in ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacct", "sacctmgr", "srun"):
        (commands / name).write_text(f"#!/bin/sh\necho {name} >> '{asked}'\nexit 1\n")
        (commands / name).chmod(0o755)
    config, profile = shutil.copy(config, folder / "a study's.yaml"), folder / "config.v9+.yaml"
    text = (dag.ROOT / "profiles/slurm" / profile.name).read_text()
    profile.write_text(re.sub(r"(slurm-init-seconds-before-status-checks): \d+", r"\1: 1", text))
    done = run(config, tmp_path / "run", "--profile", str(folder), path=f"{commands}{os.pathsep}")
    log = (tmp_path / "run" / "study.log").read_text()
    assert done.returncode == 1
    assert "jobs failed" in done.stderr
    assert "number of cores" not in log
    assert asked.is_file(), log  # it came to the first job's submission


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetune": {"epoch": 3}}, r"did you mean 'epochs'\?"),
        ({"methods": ["origin", "simsce"]}, r"no method 'simsce'; did you mean 'simcse'\?"),
        ({"datasets": {"mine": {"source": "table", "table": "absent.csv"}}}, r"absent\.csv"),
    ],
)
def test_a_mistake_in_the_file_stops_with_one_sentence(change, message, config, tmp_path, capsys):
    wrong = changed(config, tmp_path / "wrong.yaml", **change)
    assert runs.main(["study", str(wrong), "--out", str(tmp_path / "out")]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_bad_data_stops_with_a_sentence_that_names_it(config, tiny_text, tmp_path):
    (tmp_path / "one.csv").write_text("title,label,image\nred lamp,lamp,\n")
    data = {"mine": {"source": "table", "table": "one.csv", "missing_image": "keep"}}
    study = {"datasets": data, "methods": ["origin", "tfidf"], "text": {"model": str(tiny_text)}}
    done = run(changed(config, tmp_path / "study.yaml", **study), tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    expected = r"logs/01_catalogue-mine\.log: .*CatalogueError: dataset mine: .*nothing to categorize"
    assert re.search(expected, done.stderr), done.stderr


def test_killed_study_is_finished_by_the_same_command(config, out, tmp_path):
    """With two methods, on towers that are there. Ten kills of all of it: tests/system/kill_study.py."""
    methods, reference = ["origin", "tfidf"], tmp_path / "undisturbed"
    for method in methods:
        shutil.copytree(out / "predictions/beauty" / method, reference / "predictions/beauty" / method)
    results = pd.read_csv(out / "results.csv", dtype=str, keep_default_na=False)
    results[results.method.isin(methods)].to_csv(reference / "results.csv", index=False)
    assert len(numbers(reference)) > 1000
    few, longest = changed(config, tmp_path / "few.yaml", methods=methods), json.loads((out / "wall.json").read_text())
    made = ("0[2-5]_*", "pieces", "records", "predictions", "classifiers", "figures", "results.csv")
    shutil.copytree(out, tmp_path / "run0", ignore=shutil.ignore_patterns(*made))
    assert len(kill_often(few, tmp_path, reference, kills=2, seed=1, longest=0.2 * longest["seconds"])) == 2
    finished = max(tmp_path.glob("run*/wall.json"), key=os.path.getmtime).parent
    whole = numbers(finished)
    lost = ["results.csv", "figures/figure5.png", "figures/table2.csv", "notebooks/04_table2.html"]
    lost += ["classifiers/beauty/origin/seed0/f100/config.json", "records/beauty/origin/seed0.json"]
    lost += ["classifiers/beauty/origin/seed0/f100/model.safetensors", "catalogues/beauty/products.parquet"]
    for name in lost:
        (finished / name).unlink()
    done = run(few, finished)
    assert done.returncode == 0, done.stderr
    assert all((finished / name).is_file() for name in lost)
    flip(finished / "results.csv")
    assert run(few, finished).returncode == 0
    assert numbers(finished) == whole
    flip(finished / lost[-3])
    done = run(few, finished)
    assert done.returncode == 1
    assert re.search(r"error: Snakemake: RunError .*seed0\.json: not as it was written; delete it", done.stderr)
