"""The whole DAG on config/smoke.yaml, run once: what it leaves, and what happens when it is run again or killed."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from kill_study import kill_often

from icssl_lib import runs
from icssl_lib.catalogue import open_catalogue, train_subset
from icssl_lib.config import load_config
from icssl_lib.runs import piece

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the study's processes are forks")


def run(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "icssl_lib.runs", "study", str(config), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="session")
def config(root) -> Path:
    return root / "config/smoke.yaml"


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


@pytest.fixture(scope="session")
def results(out) -> pd.DataFrame:
    return pd.read_csv(out / "results.csv")


@pytest.fixture(scope="session")
def study(config):
    return load_config(config)


# --- what it leaves


def test_results_have_a_row_per_run_in_the_order_of_the_configuration(results, study, out):
    columns = "dataset,method,fraction,seed,n_train,accuracy,macro_f1,head_macro_f1,tail_macro_f1,split_hash,seconds"
    assert (out / "results.csv").read_text().splitlines()[0] == columns
    keys = list(results[["dataset", "method", "seed", "fraction"]].itertuples(index=False, name=None))
    assert keys == [
        (dataset, method, seed, fraction)
        for dataset in study.datasets
        for method in study.methods
        for seed in study.seeds
        for fraction in study.finetune.fractions
    ]
    assert set(results.split_hash) == {open_catalogue(out / "catalogues/beauty").split_hash}
    assert results.notna().all(axis=None)
    assert results.accuracy.nunique() > 5  # models that all say the same would prove little below


def f1(label: list[str], predicted: list[str], of: str) -> float:
    hits = sum(a == b == of for a, b in zip(label, predicted, strict=True))
    return 2 * hits / (label.count(of) + predicted.count(of))


def test_every_metric_follows_from_predictions(results, out):
    """Head and tail counted anew, by the definition: the fewest labels that hold 80% of Train."""
    catalogue = open_catalogue(out / "catalogues/beauty")
    counts, head = Counter(catalogue.part("train").label), []
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        if sum(counts[h] for h in head) >= 0.8 * counts.total():
            break
        head.append(name)
    test = catalogue.part("test")
    assert 0 < len(head) < len(set(test.label))
    for row in results.itertuples():
        table = pd.read_parquet(piece(out, "predictions", row.dataset, row.method, row.seed).with_suffix(".parquet"))
        table = table[table.fraction == row.fraction]
        assert list(table.id) == list(test.id)
        assert list(table.label) == list(test.label)
        label, predicted = list(table.label), list(table.predicted)
        per_class = {name: f1(label, predicted, name) for name in set(label)}
        in_head = [value for name, value in per_class.items() if name in head]
        in_tail = [value for name, value in per_class.items() if name not in head]
        expected = [np.mean(table.label == table.predicted), np.mean(list(per_class.values()))]
        expected += [np.mean(in_head), np.mean(in_tail)]
        found = [row.accuracy, row.macro_f1, row.head_macro_f1, row.tail_macro_f1]
        assert found == pytest.approx(expected, abs=1e-6), row


def test_fractions_are_nested(results, study, out):
    train = open_catalogue(out / "catalogues/beauty").part("train")
    for seed in study.seeds:
        few, all_of_it = (list(train_subset(train, fraction, seed).id) for fraction in study.finetune.fractions)
        assert all_of_it[: len(few)] == few
        for method in study.methods:
            rows = results[(results.method == method) & (results.seed == seed)]
            assert list(rows.n_train) == [len(few), len(all_of_it)]


def test_executed_notebooks_ran_through_and_show_pictures(out):
    notebooks = sorted((out / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 2 + 1 + 3 * 2 + 6 * 2 + 2 + 1
    for path in notebooks:
        code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        outputs = [output for cell in code for output in cell.outputs]
        assert all(cell.execution_count for cell in code), path.name
        assert not any(output.output_type == "error" for output in outputs), path.name
        assert any("image/png" in output.get("data", {}) for output in outputs), path.name
    assert not list(out.rglob("*.failed.ipynb"))


def test_report_and_figures_are_there(out):
    page = (out / "report/index.html").read_text(encoding="utf-8")
    assert "Table 2" in page
    assert "Figure 5" in page
    assert "data:image/" in page
    for suffix in ("png", "svg", "csv"):
        assert (out / f"figures/figure5.{suffix}").stat().st_size > 0


def test_nothing_half_written_stays(out):
    assert list(out.rglob("*")) != []
    assert [path for path in out.rglob("*") if ".part" in path.name and ".snakemake" not in path.parts] == []


def test_terminal_ends_with_table_2_and_where_all_lies(said, out):
    assert "Table 2. Test accuracy" in said.stdout
    assert "BERT (origin)" in said.stdout
    assert f"In {out}:" in said.stdout
    assert "Traceback" not in said.stderr


def test_records_say_what_the_numbers_depend_on(study, out):
    record = json.loads((out / "records/beauty/convirt/seed1.json").read_text())
    assert record["split_hash"] == open_catalogue(out / "catalogues/beauty").split_hash
    assert record["settings"]["adapt"] == study.adapt.model_dump(mode="json")
    assert {"python", "torch", "transformers", "cpu", "device"} <= set(record["machine"])


# --- its models are plain folders


def test_classifiers_load_and_predict_as_recorded(study, out):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    catalogue = open_catalogue(out / "catalogues/beauty")
    test, folders = catalogue.part("test"), sorted(out.glob("classifiers/*/*/*/*"))
    assert len(folders) == 4 * 2
    for folder in folders:
        *_, method, seed, fraction = folder.parts
        assert fraction == "f100"
        model, tokenizer = (
            AutoModelForSequenceClassification.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )
        assert list(model.config.id2label.values()) == catalogue.labels
        tokens = tokenizer(list(test.title), truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**tokens).logits.softmax(-1).max(-1)
        table = pd.read_parquet(out / f"predictions/beauty/{method}/{seed}.parquet")
        table = table[table.fraction == 1.0]
        assert [catalogue.labels[i] for i in best.indices] == list(table.predicted), folder
        assert best.values.tolist() == pytest.approx(list(table.confidence), abs=1e-4)


def test_encoders_load_and_sentence_transformers_pools_as_we_do(study, out):
    from sentence_transformers import SentenceTransformer

    from icssl_lib.encoders import embed_titles, load_text

    titles, folders = (
        list(open_catalogue(out / "catalogues/beauty").part("dev").title),
        sorted(out.glob("encoders/*/*/*")),
    )
    assert len(folders) == 3 * 2
    seen = []
    for folder in folders:
        assert {"history.csv", "space.csv", "config.json", "model.safetensors"} <= {p.name for p in folder.iterdir()}
        backbone, tokenizer = load_text(str(folder))  # AutoModel, AutoTokenizer
        ours = embed_titles(backbone, tokenizer, titles, study.text)
        theirs = SentenceTransformer(str(folder), device="cpu").encode(titles)
        assert np.allclose(ours.numpy(), theirs, atol=1e-4), folder
        assert not any(np.allclose(theirs, other, atol=1e-3) for other in seen)
        seen.append(theirs)


# --- again


def planned(config: Path, out: Path) -> dict[str, int]:
    """Rule -> number of jobs that Snakemake would run now."""
    done = subprocess.run(
        runs.snakemake(config, out, "--dry-run", "--quiet", "rules"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE)
    return {rule: int(count) for rule, count in jobs}


def test_through_a_profile_the_jobs_are_submitted(config, tmp_path):
    """Up to the cluster's own commands, which here refuse: the DAG is read without a number of cores, which a dry run
    would give it. `make slurm` runs the whole study so."""
    commands, asked = tmp_path / "bin", tmp_path / "asked"
    commands.mkdir()
    folder = tmp_path / "Ann's class #2 {smoke}: 100% 'so'"
    folder.mkdir()
    config = shutil.copy(config, folder / "a study's.yaml")
    for name in ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacct", "sacctmgr", "srun"):
        (commands / name).write_text(f"#!/bin/sh\necho {name} >> '{asked}'\nexit 1\n")
        (commands / name).chmod(0o755)
    command = [sys.executable, "-m", "icssl_lib.runs", "study", str(config), "--out", str(tmp_path / "run")]
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, "--profile", "profiles/slurm"], env=environment, capture_output=True, text=True, timeout=300,
        check=False, cwd=runs.ROOT,
    )  # fmt: skip
    log = (tmp_path / "run" / "study.log").read_text()
    assert done.returncode == 1
    assert "jobs failed" in done.stderr
    assert "number of cores" not in log
    assert asked.is_file(), log  # it came to the first job's submission


def test_second_call_does_nothing(config, out):
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and ".snakemake" not in p.parts}
    before, started = (out / "results.csv").read_bytes(), time.monotonic()
    done = run(config, out)
    assert done.returncode == 0, done.stderr
    assert "Table 2. Test accuracy" in done.stdout
    assert (out / "results.csv").read_bytes() == before
    changed = {path.name for path, then in files.items() if path.stat().st_mtime_ns != then}
    assert changed <= {"study.log", ".lock", "wall.json"}
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("finetune", {"epochs": 3}, {"finetune": 12}),
        ("adapt", {"epochs": 3}, {"adapt": 6, "finetune": 6}),
        ("pretrain", {"text_epochs": 2}, {"pretrain": 2, "adapt": 6, "finetune": 12}),
        (None, {"split_seed": 1}, {"catalogue": 1, "adapt": 6, "finetune": 12}),
        (None, {"seeds": [0, 1, 2]}, {"adapt": 3, "finetune": 6}),
    ],
)
def test_only_what_a_setting_touches_runs_again(section, change, expected, config, out, tmp_path):
    raw = yaml.safe_load(config.read_text())
    (raw if section is None else raw[section]).update(change)
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(raw))
    jobs = planned(tmp_path / "changed.yaml", out)
    assert {rule: jobs.get(rule, 0) for rule in ("results", "report")} == {"results": 1, "report": 1}
    training = ("pretrain", "catalogue", "adapt", "finetune")
    assert {rule: jobs[rule] for rule in training if rule in jobs} == expected


# --- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["finetune"].update(epoch=raw["finetune"].pop("epochs")), r"did you mean 'epochs'\?"),
        (lambda raw: raw.update(methods=["origin", "simsce"]), r"no method 'simsce'; did you mean 'simcse'\?"),
        (lambda raw: raw["datasets"].update(mine={"source": "table", "table": "absent.csv"}), r"absent\.csv"),
    ],
)
def test_a_mistake_in_the_file_stops_with_one_sentence(change, message, config, tmp_path):
    raw = yaml.safe_load(config.read_text())
    change(raw)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(raw))
    done = run(tmp_path / "wrong.yaml", tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), done.stderr


def test_bad_data_stops_with_a_sentence_that_names_it(config, tmp_path):
    raw = yaml.safe_load(config.read_text())
    (tmp_path / "one.csv").write_text("title,label,image\nred lamp,lamp,\n")
    raw["datasets"] = {"mine": {"source": "table", "table": "one.csv", "missing_image": "keep"}}
    raw["methods"] = ["origin", "tfidf"]
    raw["text"]["model"] = str(tmp_path)  # no pretraining to wait for
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    done = run(tmp_path / "study.yaml", tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"logs/01_catalogue-mine\.log: .*CatalogueError: dataset mine: .*one label", done.stderr), (
        done.stderr
    )


# --- kill -9


def test_killed_study_is_finished_by_the_same_command(config, out, tmp_path):
    """Ten kills: `python tests/kill_study.py config/smoke.yaml`."""
    longest = 0.8 * json.loads((out / "wall.json").read_text())["seconds"]
    assert len(kill_often(config, tmp_path, out, kills=4, seed=1, longest=longest)) == 4
