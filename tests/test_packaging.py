"""Files beside the library that must agree with each other: environment, lock, Makefile, notebooks, CI."""

import json
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from icssl_lib.config import Study

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in ROOT.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)
check = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci/check_study.py")))
CONDA_NAMES = {"torch": "pytorch", "snakemake": "snakemake-minimal"}


PEERS = "bench"  # the extra that only `make bench` installs, from a lock file of its own


def declared(*only: str) -> list[Requirement]:
    """The requirements of pyproject.toml with all extras but the peers', or those of one extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = only or [name for name in extras if name != PEERS]
    lines = [] if only else project["dependencies"]
    return [Requirement(line) for line in [*lines, *(line for name in chosen for line in extras[name])]]


def locked(name: str = "requirements.lock") -> dict[str, list[str]]:
    """Each pinned name of a lock file with its entries, continuation lines joined."""
    entries: dict[str, list[str]] = {}
    for entry in (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        entries.setdefault(canonicalize_name(re.split(r"==|[ ;@]", entry)[0]), []).append(entry)
    return entries


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# ---- dependencies


def test_conda_environment_is_in_step_with_pyproject() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = {entry for entry in entries if isinstance(entry, str) and entry != "pip"}
    pyproject = {f"{CONDA_NAMES.get(r.name, r.name)}{r.specifier}" for r in declared()}
    python = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert conda == pyproject | {f"python{python}"}


def test_each_requirement_is_locked_at_an_allowed_version() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    requirements = [*declared(), *map(Requirement, build)]  # make builds without isolation, from the lock
    assert len(requirements) > 20
    asked = [(requirement, locked()) for requirement in requirements]
    asked += [(requirement, locked("requirements-bench.lock")) for requirement in declared(PEERS)]
    assert len(asked) >= len(requirements) + 5
    for requirement, entries in asked:
        pins = entries.get(canonicalize_name(requirement.name), [])
        assert pins, f"{requirement}: not locked; run `make lock`"
        for pin in pins:
            assert requirement.specifier.contains(re.search(r"==(\S+)", pin)[1]), f"{requirement}: {pin[:60]}"


def test_the_peers_do_not_move_what_the_study_runs_with() -> None:
    study, peers = locked(), locked("requirements-bench.lock")
    both = study.keys() & peers.keys()
    assert len(both) > 100

    def versions(pins: list[str]) -> set[str]:
        return {re.search(r"==(\S+)", pin)[1] for pin in pins}

    assert [name for name in both if versions(study[name]) != versions(peers[name])] == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-bench.lock"])
def test_lock_holds_a_hash_for_each_entry_and_no_address(name: str) -> None:
    entries = [entry for group in locked(name).values() for entry in group]
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==\S+ ", entry), entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry[:80]
        assert "://" not in entry
        assert " @ " not in entry


def test_no_tracked_file_names_a_registry_or_is_large() -> None:
    hosts = [".".join(host).encode() for host in (("pypi", "org"), ("files", "pythonhosted", "org"), ("npmjs", "org"))]
    files = tracked()
    assert files
    for path in files:
        assert path.stat().st_size <= 1.5e6, path
        content = path.read_bytes()
        assert not any(host in content for host in hosts), path


# ---- Makefile and CI


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("make"):
        pytest.skip("no make")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    return subprocess.run(["make", *arguments], cwd=folder, env=outside, capture_output=True, text=True, check=False)


def test_make_alone_lists_each_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    targets = set(phony[1].split()) - {"unusable"}
    assert targets >= {"help", "study", "test", "lab", "lint", "lock", "plan"}
    listed = make(ROOT).stdout.splitlines()
    assert {line.split()[1] for line in listed} == targets
    assert all(len(line.split(maxsplit=2)) == 3 for line in listed)


@pytest.mark.parametrize("target", ["study", "test"])
def test_make_says_what_to_do_without_a_python(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    done = make(folder, target, "PYTHON=false")
    assert done.returncode != 0
    assert "no Python 3.11 or newer" in done.stderr
    assert "PYTHON=/path/to/python3" in done.stderr
    assert not (folder / ".venv").exists()


def test_citation_names_software_and_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what CFF 1.2.0 requires
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    paper = citation["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Chen", "Chou"]
    assert paper["doi"] == "10.18653/v1/2022.ecnlp-1.25"


# ---- notebooks


def test_notebooks_are_found() -> None:
    assert {path.stem[:2] for path in NOTEBOOKS} >= {"01", "02", "03", "04", "05"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean_parameterized_and_thin(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [i for i, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == ([] if "lessons" in path.parts else [0])  # a lesson has one workshop and no parameters
    for cell in code:
        source = "".join(cell["source"])
        assert not cell["outputs"], source
        assert cell["execution_count"] is None, source
        assert len(source.splitlines()) <= 15, source
        assert not re.search(r"^\s*class\s", source, re.MULTILINE), source


# ---- the check of a finished study, which must fail where something is wrong


@pytest.fixture
def study() -> Study:
    genre = {"source": "synthetic", "genre": "beauty"}
    return Study.model_validate(
        {
            "study": "toy",
            "datasets": {"toy": genre},
            "seeds": [0],
            "pretrain": {},
            "finetune": {"fractions": [0.5, 1.0]},
        }
    )


@pytest.fixture
def out(study: Study, tmp_path: Path) -> Path:
    """A run folder with everything that the check looks for."""

    def write(name: str, text: str = "x") -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    rows = []
    for method in study.methods:
        right = {"origin": 2, "simcse": 2, "convirt": 6, "convirt_shuffled": 2}[method]  # of 10 items
        items = pd.DataFrame({"fraction": np.repeat([0.5, 1.0], 10), "label": "a"})
        items["predicted"] = ["a"] * right + ["b"] * (10 - right) + ["a"] * 10
        items.to_parquet(write(f"predictions/toy/{method}/seed0.parquet"))
        record = {"split_hash": "0123456789abcdef", "fractions": [{"test_readings": 1}]}
        write(f"records/toy/{method}/seed0.json", json.dumps(record))
        for file in check.HF_FOLDER:
            write(f"encoders/toy/{method}/seed0/{file}")
            write(f"classifiers/toy/{method}/seed0/f100/{file}")
        for fraction, accuracy in ((0.5, right / 10), (1.0, 1.0)):
            scores = [accuracy] * 4
            rows.append(["toy", method, fraction, 0, 10, *scores, "0123456789abcdef", 1.0])
    pd.DataFrame(rows, columns=check.COLUMNS.split(",")).to_csv(write("results.csv"), index=False)
    for notebook in check.NOTEBOOKS:
        write(f"notebooks/{notebook}.html")
        write(f"notebooks/{notebook}.ipynb", '{"cells": [{"cell_type": "code", "execution_count": 1}]}')
    for suffix in ("png", "svg", "csv"):
        write(f"figures/figure5.{suffix}")
    write("report/index.html", '<h2>Table 2</h2><h2>Figure 5</h2><img src="data:image/png;base64,"><a href="../x">')
    for kind in ("map", "classes"):
        write(f"report/{kind}-toy.html", "<p>a page</p>")
    return tmp_path


def test_check_accepts_a_whole_study(study: Study, out: Path) -> None:
    assert list(check.problems(study, out, rows=8, gain=0.39)) == []


@pytest.mark.parametrize(
    "name",
    [
        "results.csv",
        "predictions/toy/origin/seed0.parquet",
        "records/toy/simcse/seed0.json",
        "encoders/toy/convirt/seed0/model.safetensors",
        "classifiers/toy/convirt_shuffled/seed0/f100/config.json",
        "notebooks/04_table2.ipynb",
        "notebooks/05_figure5.html",
        "figures/figure5.csv",
        "report/index.html",
        "report/map-toy.html",
    ],
)
def test_check_misses_a_file(study: Study, out: Path, name: str) -> None:
    (out / name).unlink()
    assert any(name.split("/")[0] in problem for problem in check.problems(study, out))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("results.csv", "toy,simcse,0.5,0", "toy,simcse,0.25,0"),
        ("results.csv", "toy,convirt,1.0,0,10,1.0", "toy,convirt,1.0,0,10,0.9"),
        ("results.csv", "toy,convirt,1.0,0,10,1.0", "toy,convirt,1.0,0,10,"),
        ("results.csv", "0123456789abcdef,1.0\ntoy,simcse", "0123456789abcdee,1.0\ntoy,simcse"),
        ("results.csv", "macro_f1", "f1"),
        ("notebooks/03_finetune.ipynb", "1}", "null}"),
        ("records/toy/origin/seed0.json", "0123456789abcdef", "fedcba9876543210"),
        ("records/toy/origin/seed0.json", '"test_readings": 1', '"test_readings": 2'),
        ("report/index.html", "data:image/png;base64,", "figures/table2.png"),
        ("report/index.html", "Figure 5", "Figure"),
        ("report/classes-toy.html", "<p>", "<script src=x.js></script><p>"),
    ],
)
def test_check_sees_a_wrong_value(study: Study, out: Path, name: str, old: str, new: str) -> None:
    text = (out / name).read_text(encoding="utf-8")
    assert old in text
    (out / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert list(check.problems(study, out))


def test_check_wants_the_rows_and_the_gain(study: Study, out: Path) -> None:
    assert len(list(check.problems(study, out, rows=216))) == 1
    assert len(list(check.problems(study, out, gain=0.41))) == 1
