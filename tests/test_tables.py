"""No number in a document that no file holds: the blocks are what the files in figures/ say, and the files are few."""

import subprocess
import sys

from keep import keep
from PIL import Image

COG = [sys.executable, "-m", "cogapp", "-P", "-I", "benchmarks", "-p", "from tables import *"]


def test_the_documents_say_what_the_files_hold(root):
    documents = [root / "README.md", *root.glob("docs/*.md")]
    checked = subprocess.run([*COG, "--check", *documents], cwd=root, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, f"run `make docs`: {checked.stdout}{checked.stderr}"
    assert sum(path.read_text("utf-8").count("[[[cog") for path in documents) > 20


def test_a_finished_study_is_kept_without_its_products(tmp_path):
    run = tmp_path / "runs" / "s"
    (run / "figures").mkdir(parents=True)
    (run / "results.csv").write_text("method\n")
    for name in ("accuracy.csv", "accuracy.svg", "a_maps.csv", "a_neighbours.csv"):
        (run / "figures" / name).touch()
    Image.new("RGB", (9, 9), "red").save(run / "figures" / "accuracy.png")
    kept = {path.name for path in keep(run, tmp_path / "figures").iterdir()}
    assert kept == {"accuracy.csv", "accuracy.png", "results.csv", "hardware.csv"}


def test_what_is_tracked_is_small(root):
    files = [path for path in (root / "figures").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
