"""Files beside the library that must agree with each other: environment, lock, Makefile, notebooks, CI."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in ROOT.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA_NAMES = {"torch": "pytorch", "snakemake": "snakemake-minimal"}
PEERS = "bench"  # the extra that only `make bench` installs, from a lock file of its own


def declared(*only: str) -> list[Requirement]:
    """The requirements of pyproject.toml with all extras but the peers', or those of one extra."""
    extras = PROJECT["project"]["optional-dependencies"]
    chosen = only or [name for name in extras if name != PEERS]
    lines = [] if only else PROJECT["project"]["dependencies"]
    return [Requirement(line) for line in [*lines, *(line for name in chosen for line in extras[name])]]


def locked(name: str = "requirements.lock") -> dict[str, list[str]]:
    """Each pinned name of a lock file with its entries, continuation lines joined."""
    entries: dict[str, list[str]] = {}
    for entry in (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        entries.setdefault(canonicalize_name(re.split(r"==|[ ;@]", entry)[0]), []).append(entry)
    return entries


# ---- dependencies


def test_conda_environment_is_in_step_with_pyproject() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = {entry for entry in entries if isinstance(entry, str) and entry != "pip"}
    pyproject = {f"{CONDA_NAMES.get(r.name, r.name)}{r.specifier}" for r in declared()}
    assert conda == pyproject | {f"python{PROJECT['project']['requires-python']}"}


def test_each_requirement_is_locked_at_an_allowed_version() -> None:
    requirements = [*declared(), *map(Requirement, PROJECT["build-system"]["requires"])]  # built without isolation
    asked = [(requirement, locked()) for requirement in requirements]
    asked += [(requirement, locked("requirements-bench.lock")) for requirement in declared(PEERS)]
    assert len(asked) > 25
    for requirement, entries in asked:
        pins = entries.get(canonicalize_name(requirement.name), [])
        assert pins, f"{requirement}: not locked; run `make lock`"
        for pin in pins:
            assert requirement.specifier.contains(re.search(r"==(\S+)", pin)[1]), f"{requirement}: {pin[:60]}"


def test_locks_hold_hashes_and_no_address_and_the_peers_move_nothing() -> None:
    pins = {}
    for name in ("requirements.lock", "requirements-bench.lock"):
        pins[name] = {}
        for package, entries in locked(name).items():
            for entry in entries:
                assert re.match(r"[A-Za-z0-9._-]+==\S+ ", entry), entry[:80]
                assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry[:80]
                assert not re.search("://| @ ", entry), entry[:80]
            pins[name][package] = {re.search(r"==(\S+)", entry)[1] for entry in entries}
    study, peers = pins.values()
    both = study.keys() & peers.keys()
    assert len(both) > 100
    assert [package for package in both if study[package] != peers[package]] == []


def test_no_tracked_file_names_a_registry_or_is_large() -> None:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    hosts = [".".join(host).encode() for host in (("pypi", "org"), ("files", "pythonhosted", "org"), ("npmjs", "org"))]
    assert files
    for path in files:
        assert path.stat().st_size <= 1.5e6, path
        assert not any(host in path.read_bytes() for host in hosts), path


# ---- Makefile and notebooks


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("make"):
        pytest.skip("no make")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    return subprocess.run(["make", *arguments], cwd=folder, env=outside, capture_output=True, text=True, check=False)


def test_make_alone_lists_each_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
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
    assert re.search(r"no Python 3\.11 or newer(.|\n)*PYTHON=/path/to/python3", done.stderr)
    assert not (folder / ".venv").exists()


def test_citation_names_software_and_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what CFF 1.2.0 requires
    for key in ("version", "license"):
        assert citation[key] == PROJECT["project"][key]
    assert citation["references"][0]["doi"] == "10.18653/v1/2022.ecnlp-1.25"


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
