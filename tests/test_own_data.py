"""docs/own-data.md says what happens: its blocks run, and its configurations are valid."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from icssl_lib.catalogue import ingest
from icssl_lib.config import load_config

DOC = (Path(__file__).parents[1] / "docs/own-data.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^\.venv/bin/python - <<'EOF_PYTHON'\n(.*?)^EOF_PYTHON$", DOC, re.DOTALL | re.MULTILINE)
YAML = re.findall(r"^```yaml\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
TEXT = re.findall(r"^```text\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)


def run(program: str, folder: Path) -> str:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-"], input=program, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_blocks_are_found() -> None:
    assert (len(PROGRAMS), len(YAML), len(TEXT)) == (4, 3, 1)


def test_configuration_shown_is_the_file(root: Path) -> None:
    assert YAML[1] == (root / "config/own-data.yaml").read_text(encoding="utf-8")


def test_shop_is_made_and_its_flaws_are_reported(root: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/own-data.yaml").write_text(YAML[1], encoding="utf-8")
    run(PROGRAMS[0], tmp_path)
    assert load_config(tmp_path / "config/own-data.yaml").datasets["shop"].table.is_file()
    assert run(PROGRAMS[2], tmp_path) == TEXT[0]
    run(PROGRAMS[1], tmp_path)
    layouts = yaml.safe_load(YAML[1]) | yaml.safe_load(YAML[0])
    (tmp_path / "config/layouts.yaml").write_text(yaml.safe_dump(layouts), encoding="utf-8")
    left = {}
    for name, source in load_config(tmp_path / "config/layouts.yaml").datasets.items():
        products = ingest(name, source, 32, 0, tmp_path / name, progress=False).products
        assert (products.image_row >= 0).all()
        left[name] = len(products)
    assert left == {"paths": 1497, "bytes": 1497, "folders": 1197}  # those without a usable picture are dropped here


def test_two_lines_lead_to_the_papers_settings(root: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(YAML[1]) | yaml.safe_load(YAML[2])
    tiny = {"pretrain": raw.pop("pretrain"), "adapt": raw.pop("adapt"), "finetune": raw.pop("finetune")}
    raw["finetune"] = {"fractions": tiny["finetune"]["fractions"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    study = load_config(tmp_path / "mine.yaml")
    assert (study.text.model, study.vision.model) == ("bert-base-uncased", "vit_base_patch16_224")
    assert (study.adapt.epochs, study.adapt.lr, study.adapt.projection_dim) == (50, pytest.approx(1e-5), 768)
    assert (study.finetune.epochs, study.finetune.lr) == (30, pytest.approx(5e-5))


def test_deployed_folder_is_one_that_the_study_writes() -> None:
    study = load_config(Path(__file__).parents[1] / "config/own-data.yaml")
    folder = re.search(r"runs/(\S+)/classifiers/(\S+)/(\S+)/seed(\d+)/f(\d+) ", DOC)
    assert folder
    name, dataset, method, seed, percent = folder.groups()
    assert name == study.study
    assert dataset in study.datasets
    assert method in study.methods
    assert int(seed) in study.seeds
    assert int(percent) / 100 in study.finetune.keep_classifiers
    assert "icssl_lib" not in PROGRAMS[3]
