"""Keep a finished study's tables and figures in ``figures/<study>/``, small enough to track; `make docs` reads them.

    .venv/bin/python benchmarks/keep.py runs/quick

Maps and neighbours stay behind: they show products, pictures and titles of a catalogue that may be nobody's to publish.
"""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
from PIL import Image

from icssl_lib.files import SUMS, folder_written_whole

PAPER = ("accuracy", "figure5", "label_efficiency", "class_sizes")  # the paper's figures, which stay as SVG too
SHOWN = ("quick", "hm")  # the studies whose figures of the paper are shown
FIGURES = Path(__file__).resolve().parent.parent / "figures"


def keep(run: Path, figures: Path = FIGURES) -> Path:
    """Copy tables and PNGs, in 256 colours at most; returns the folder. Raises: OSError: the run is not finished."""
    left = ["*_maps.*", "*_neighbours.*", *["*_class_sizes.*"] * (run.name not in SHOWN)]
    left += [f"{name}.png" for name in PAPER] * run.name.startswith("law")  # a panel for each of fifteen data sets
    with folder_written_whole(figures / run.name) as folder:
        shutil.copytree(run / "figures", folder, ignore=shutil.ignore_patterns(*left), dirs_exist_ok=True)
        shutil.copy(run / "results.csv", folder)
        hardware(run).to_csv(folder / "hardware.csv", index=False)
        if (run / "wall.json").is_file():  # a study of which only a part was collected has none
            shutil.copy(run / "wall.json", folder)
        for path in folder.glob("*.svg"):
            if run.name not in SHOWN or not path.stem.endswith(PAPER):
                path.unlink()
        for path in folder.glob("*.png"):
            with Image.open(path) as image:
                small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            small.save(path, optimize=True)
    (figures / run.name / SUMS).unlink()  # version control has its own
    return figures / run.name


def hardware(run: Path) -> pd.DataFrame:
    """How many of a run's classifiers were recorded where: where, classifiers. TF-IDF is the CPU's."""
    counts: Counter[str] = Counter()
    for path in sorted((run / "records").rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        about, words = record["machine"], record["method"] == "tfidf"
        on_cpu = words or "cpu" in (about["device"], record["settings"]["runtime"]["device"])
        what = f"{about['cpu' if on_cpu else 'device']}, {'TF-IDF' if words else record['precision']}"
        counts[what] += len(record["fractions"])
    return pd.DataFrame(counts.most_common(), columns=["where", "classifiers"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="runs/<study>")
    print(keep(parser.parse_args().run))
