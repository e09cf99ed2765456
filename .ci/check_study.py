"""Check what a finished study left in its run folder; print what is wrong and exit 1.

    .venv/bin/python .ci/check_study.py config/quick.yaml runs/quick --rows 216 --gain 0.05

Recomputes the accuracies from the predictions without the library's metrics.
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from icssl_lib.config import Study, load_config
from icssl_lib.methods import adapted_by, entry_of

COLUMNS = "dataset,method,fraction,seed,n_train,accuracy,macro_f1,head_macro_f1,tail_macro_f1,split_hash,seconds"
NOTEBOOKS = ["01_catalogue", "02_adapt", "03_finetune", "04_table2", "05_figure5", "explore_embeddings"]
KEYS = ["dataset", "method", "fraction", "seed"]
HF_FOLDER = ["config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json"]


def problems(study: Study, out: Path, rows: int | None = None, gain: float | None = None) -> Iterator[str]:
    """Yield one sentence for each thing that is missing or wrong.

    Args:
        rows: how many rows results.csv must have, as a check on the configuration itself.
        gain: what ConVIRT must gain over origin at the smallest fraction, in every dataset; the control may
            show at most half of what ConVIRT shows.
    """
    try:
        results = pd.read_csv(out / "results.csv")
    except (OSError, ValueError) as error:
        yield f"results.csv: {error}"
        return
    yield from _results(study, results, rows)
    yield from _runs(study, out, results)
    yield from _presented(study.datasets, [*NOTEBOOKS, *(f"*_{name}" for name in study.notebooks)], out)
    if gain is not None:
        yield from _gain(study, results, gain)


def _results(study: Study, results: pd.DataFrame, rows: int | None) -> Iterator[str]:
    if ",".join(results.columns) != COLUMNS:
        yield f"results.csv: columns are {','.join(results.columns)}, expected {COLUMNS}"
        return
    if rows is not None and len(results) != rows:
        yield f"results.csv: {len(results)} rows, expected {rows}"
    expected = set(itertools.product(study.datasets, study.methods, study.finetune.fractions, study.seeds))
    found = [tuple(row) for row in results[KEYS].itertuples(index=False)]
    if len(found) != len(set(found)) or set(found) != expected:
        example = sorted(set(found) ^ expected)[:2]
        yield f"results.csv: expected one row for each of {len(expected)} keys; unlike that: {example}"
    scores = results[["accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1"]]
    if not (scores.notna() & (scores >= 0) & (scores <= 1)).all(axis=None):
        yield "results.csv: a score is missing or outside [0, 1]"
    if (results.groupby("dataset")["split_hash"].nunique() != 1).any():
        yield "results.csv: a dataset has more than one split"


def _runs(study: Study, out: Path, results: pd.DataFrame) -> Iterator[str]:
    """The files of each dataset, method and seed, and their agreement with results.csv."""
    for dataset, method, seed in itertools.product(study.datasets, study.methods, study.seeds):
        name = f"{dataset}/{method}/seed{seed}"
        files = [out / f"predictions/{name}.parquet", out / f"records/{name}.json"]
        entry, own = entry_of(study, method), study.of(method)
        if adapted_by(study, method) == method:
            files += [out / f"encoders/{name}" / file for file in HF_FOLDER]
        if entry.classifier in ("finetune", "recommended"):
            kept = [f"f{100 * fraction:03g}" for fraction in own.finetune.keep_classifiers]
            files += [out / f"classifiers/{name}" / fraction / file for fraction in kept for file in HF_FOLDER]
        absent = [f"{file.relative_to(out)}: absent or empty" for file in files if not _has_content(file)]
        yield from absent
        if absent:
            continue
        of_run = results[(results[KEYS[0]] == dataset) & (results["method"] == method) & (results["seed"] == seed)]
        record = json.loads(files[1].read_text(encoding="utf-8"))
        if not set(of_run["split_hash"]) <= set(re.findall(r"[0-9a-f]{16,}", json.dumps(record))):
            yield f"records/{name}.json: does not hold the split's hash"
        if (read := {row.get("test_readings") for row in record["fractions"]}) != {1}:
            yield f"records/{name}.json: Test was read {read} times by a classifier, expected once"
        items = pd.read_parquet(files[0])
        accuracy = (items["label"] == items["predicted"]).groupby(items["fraction"]).mean()
        stated = of_run.set_index("fraction")["accuracy"]
        if not stated.index.equals(accuracy.index) or not np.allclose(stated, accuracy, atol=1e-6):
            yield f"predictions/{name}.parquet: its accuracies are not those of results.csv"


def _presented(datasets: Iterable[str], notebooks: Iterable[str], out: Path) -> Iterator[str]:
    """Executed notebooks, figures with their data, and pages that need nothing beside them."""
    for notebook in notebooks:
        executed = list(out.glob(f"notebooks/**/{notebook}*.ipynb"))
        if not executed or not list(out.glob(f"notebooks/**/{notebook}*.html")):
            yield f"notebooks/{notebook}*: no executed .ipynb with its .html"
        for path in executed:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            if any(cell["cell_type"] == "code" and cell["execution_count"] is None for cell in cells):
                yield f"{path.relative_to(out)}: a cell was not executed"
    figures = sorted(out.glob("figures/**/*.png"))
    if not figures:
        yield "figures/: no picture"
    for figure, suffix in itertools.product(figures, [".png", ".csv"]):
        if not _has_content(figure.with_suffix(suffix)):
            yield f"{figure.with_suffix(suffix).relative_to(out)}: absent or empty"
    report = out / "report/index.html"
    html = report.read_text(encoding="utf-8") if report.exists() else ""
    if "Table 2" not in html or "Figure 5" not in html:
        yield "report/index.html: no Table 2 or no Figure 5 in it"
    for page in (report, *(out / "report" / f"map-{dataset}.html" for dataset in datasets)):
        if not _has_content(page):
            yield f"report/{page.name}: absent or empty"
            continue
        tags = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")(["script", "img", "link", "iframe"])
        addresses = [tag.get("src") or tag.get("href") or "#" for tag in tags]
        loaded = [address for address in addresses if not address.startswith(("data:", "#"))]
        if loaded:
            yield f"report/{page.name}: not self-contained, it loads {loaded[:3]}"


def _gain(study: Study, results: pd.DataFrame, gain: float) -> Iterator[str]:
    few = results[results["fraction"] == min(study.finetune.fractions)]
    accuracy = few.groupby(["dataset", "method"])["accuracy"].mean().unstack()
    gains = accuracy.sub(accuracy["origin"], axis=0)
    for dataset, convirt, control in gains[["convirt", "convirt_shuffled"]].itertuples():
        if not convirt >= gain:
            yield f"{dataset}: ConVIRT gains {convirt:+.3f} over origin, expected at least {gain:+.3f}"
        if not control <= convirt / 2:
            yield f"{dataset}: the control gains {control:+.3f}, ConVIRT {convirt:+.3f}"


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--gain", type=float)
    args = parser.parse_args()
    found = list(problems(load_config(args.config), args.out, args.rows, args.gain))
    print("\n".join(found) or f"{args.out}: all there")
    raise SystemExit(bool(found))
