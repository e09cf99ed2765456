"""Tables of the documents: each function prints Markdown made of a file in ``figures/``. `make docs` runs them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from icssl_lib import metrics
from icssl_lib.methods import METHODS

FIGURES = Path(__file__).resolve().parent.parent / "figures"
STARS = "Means over the data sets; * marks p < 0.05 by Holm over"


def table2(study: str) -> None:
    """Accuracies and the paper's, as text."""
    print(f"```text\n{metrics.format_table2(pd.read_csv(FIGURES / study / 'results.csv'))}\n```")


def accuracy(*studies: str, frozen: str | None = None, strong: str = "ngrams_names") -> None:
    """Mean accuracies over the seeds of all ``studies``, and of ``frozen``, whose own methods are read by logistic
    regression beside TF-IDF. In bold: the best of a column that reads titles alone, and ``strong`` words where no
    method that fine-tunes is ahead of them. In italics: fewer seeds than others have."""
    read = {study: pd.read_csv(FIGURES / study / "results.csv") for study in (*studies, frozen) if study}
    if frozen:
        beside = {"origin": "Frozen origin + TF-IDF", "convirt": "Frozen ConVIRT + TF-IDF"}
        beside |= {"convirt_shuffled": "Frozen control + TF-IDF", "origin_names": "Frozen origin + TF-IDF, names"}
        read[frozen] = read[frozen].replace({"method": beside})
    runs = pd.concat(read.values()).drop_duplicates(["dataset", "method", "fraction", "seed"])
    order, rows = list(runs["method"].unique()), metrics.summary(runs)
    rows = rows.sort_values("method", key=lambda names: names.map(order.index), kind="stable")
    tuned = rows["method"].isin([m for m, entry in METHODS.items() if entry.classifier == "finetune"])
    able = ~rows["method"].isin(["labelled", "oracle", "image", "taught_picture"])
    best, beaten = (rows["accuracy"].where(which).groupby(rows["fraction"]).transform("max") for which in (able, tuned))
    bold = (able & (rows["accuracy"] == best)) | ((rows["method"] == strong) & (rows["accuracy"] >= beaten))
    mark = np.where(bold, "**", "") + np.where(rows["seeds"] < rows["seeds"].max(), "*", "")
    shown = mark + rows["accuracy"].map("{:.3f}".format) + mark
    by_fraction(rows.assign(shown=shown), {"dataset": "", "method": "Test accuracy"})
    few = f"; in italics over {rows['seeds'].min()}" if rows["seeds"].nunique() > 1 else ""
    print(f"\nMeans over {rows['seeds'].max()} seeds{few}.")


def text(path: str) -> None:
    """A file as it is."""
    print(f"```text\n{(FIGURES / path).read_text(encoding='utf-8').rstrip()}\n```")


def columns(path: str, *names: str) -> None:
    """A table of few rows, each of them a column; ``names``: those of its columns that are shown, or all."""
    frame = pd.read_csv(FIGURES / path, dtype=str, keep_default_na=False)
    lines = [f"| {name.replace('_', ' ')} | {' | '.join(frame[name])} |" for name in names or frame]
    print("\n".join([lines[0], "|---" * (1 + len(frame)) + "|", *lines[1:]]))


def by_fraction(rows: pd.DataFrame, heads: dict[str, str]) -> None:
    """The texts in column ``shown``: a row per ``heads`` (column: its title), a column per fraction of Train."""
    fractions = sorted(rows["fraction"].unique())
    titles = [*heads.values(), *(f"{f:.0%}" for f in fractions)]
    print("|" + "".join(f" {title} |" if title else " |" for title in titles))
    print("|---" * len(titles) + "|")
    for key, group in rows.groupby(list(heads), sort=False):
        named = zip(heads, key, strict=True)
        names = [metrics.method_name(k) if c in ("method", "against", "dual", "of") else k for c, k in named]
        print(f"| {' | '.join([*names, *group.set_index('fraction')['shown'].reindex(fractions, fill_value='')])} |")


def intervals(path: str, value: str, form: str = "+.3f", where: str = "fraction > 0", **heads: str) -> None:
    """``value`` [low, high] of the rows ``where``, for each data set and method; a dash where it is not defined."""
    rows = pd.read_csv(FIGURES / path).query(where)
    cells = rows[[value, "low", "high"]].itertuples(index=False)
    shown = ["–" if x != x else f"{x:{form}} [{low:{form}}, {high:{form}}]" for x, low, high in cells]
    by_fraction(rows.assign(shown=shown), heads or {"dataset": "", "method": ""})


def walls(*studies: str) -> None:
    """How long studies took, and where."""
    print("| study | minutes | cores | GB, at most |\n|---|---|---|---|")
    for study in studies:
        of = json.loads((FIGURES / study / "wall.json").read_text())
        memory = of.get("peak_memory_gb", of.get("largest_process_gb"))
        cores = f"{of['cores']} of {of['machine']['cpu']} ({of['machine']['device']})"
        print(f"| {study} | {of['seconds'] / 60:.1f} | {cores} | {memory:.1f} |")


def over_all_cells(rows: pd.DataFrame) -> bool:
    """Whether p_holm is over all ``rows``, those of one dataset and metric. In files of earlier runs it is over the
    fractions of each pair."""
    return np.allclose(metrics.holm(rows["p"]), rows["p_holm"], rtol=1e-4, equal_nan=True)


def compare(study: str) -> None:
    """The baseline's accuracy over all datasets, and each method's less it."""
    rows = pd.read_csv(FIGURES / study / "compare.csv").query("metric == 'accuracy' and dataset == 'all'")
    baseline = rows["against"].iloc[0]
    own = pd.read_csv(FIGURES / study / "results.csv").query("method == @baseline")
    own = own.groupby("fraction")["accuracy"].mean().map("{:.3f}".format).rename("shown").reset_index()
    cells = "all pairs and fractions" if over_all_cells(rows) else "the fractions of a row"
    rows = rows[rows["against"] == baseline].assign(shown=metrics.starred)
    by_fraction(pd.concat([own.assign(method=baseline, against=""), rows]), {"method": "method", "against": "less"})
    print(f"\n{STARS} {cells}.")


def recommended(study: str) -> None:
    """What is recommended less ConVIRT, strong words, its controls and the best that sees pictures; over all datasets,
    with the stars of `compare`."""
    others = ["convirt", "origin_names", "ngrams_names", "recommended_shuffled", "recommended_origin"]
    others += ["taught", "taught_picture"]
    rows = pd.read_csv(FIGURES / study / "compare.csv").query("metric == 'accuracy' and against == 'recommended'")
    rows = rows[rows["method"].isin(others) & (rows["dataset"] == "all")]
    rows = rows.assign(difference=-rows["difference"], low=-rows["high"], high=-rows["low"])
    by_fraction(rows.assign(shown=metrics.starred(rows)), {"against": "", "method": "less"})


def ablations(study: str) -> None:
    """Changed settings over all datasets: accuracy less that of the method with the study's own value."""
    table = pd.read_csv(FIGURES / study / "ablations.csv", dtype=str, keep_default_na=False)  # "None", "0.10": texts
    rows = table.query("metric == 'accuracy' and dataset == 'all'")
    numbers = rows[["fraction", "difference", "low", "high", "p", "p_holm"]].apply(pd.to_numeric)
    rows = rows.assign(**numbers, value=rows["value"] + " (" + rows["reference"] + ")")
    heads, cells = {"of": "method", "setting": "setting", "value": "value (study's)"}, "all cells of this table"
    if over_all_cells(rows):
        by_fraction(rows.assign(shown=metrics.starred), heads)
        print(f"\n{STARS} {cells}.")
        return
    of_all = metrics.holm(rows["p"])  # of the p that no correction has touched yet
    shown = [cell + "*" * bool(p < 0.05) for cell, p in zip(metrics.starred(rows), of_all, strict=True)]
    by_fraction(rows.assign(shown=shown), heads)
    # A bootstrap's p is no smaller than its resamples allow, which over many cells may be too much.
    too = f"** over {cells} too" if of_all.min() < 0.05 else f"None is below over {cells}"
    print(f"\n{STARS} the fractions of a row. {too}.")


def deployment(study: str) -> None:
    """What an answer costs, and what the exports do to accuracy."""
    cost = pd.read_csv(FIGURES / study / "cost.csv").query("batch == 1")
    onnx = pd.read_csv(FIGURES / study / "onnx.csv")
    heads = "design | device | p50 / p99 ms | products/s | peak MB | weights MB | bytes a request | GFLOP"
    print(f"| {heads} |\n{'|---' * 8}|")
    for r in cost.itertuples():
        times = f"{r.design} | {r.device} | {r.p50_ms:.3g} / {r.p99_ms:.3g} | {r.items_per_s:,.0f}"
        print(f"| {times} | {r.peak_mb:,.0f} | {r.model_mb:.2f} | {r.bytes_per_request:,.0f} | {r.gflops:.4f} |")
    exported = f"Exports of `{onnx.method[0]}` on {onnx.products[0]} products of Dev"
    same = [f"{r.design} {r.accuracy:.4f} ({r.same:.1%} of predictions as before)" for r in onnx.itertuples()]
    print(f"\n{cost.dataset[0]}, threads: {cost.threads[0]}. {exported}: {'; '.join(same)}.")


def speed(where: str) -> None:
    """What `make bench` compared: the rows of ``bench.csv`` ``where``, and what share of each machine's matrix products
    ours use in their works."""
    rows = pd.read_csv(FIGURES / "bench" / "bench.csv").query(where)
    print("| work | beside | ours, per s | theirs, per s | ratio | in the rounds |\n|---|---|---|---|---|---|")
    for r in rows.itertuples():
        ours, theirs = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (r.ours_per_s, r.peer_per_s))
        print(f"| {r.work} | {r.peer} | {ours} | {theirs} | **{r.ratio:.2f}** | {r.low:.2f} to {r.high:.2f} |")
    about = pd.read_csv(FIGURES / "bench" / "machine.csv").merge(rows[["machine", "work"]].drop_duplicates())
    for machine, of in about.groupby("machine", sort=False):
        shares = ", ".join(f"{r.work}: {r.share_of_ceiling:.0%}" for r in of.itertuples())
        ceilings = sorted({f"{tflops:.3f}" for tflops in of["ceiling_tflops"]})  # one of each call
        ceiling = " to ".join(ceilings[:: max(1, len(ceilings) - 1)])
        print(f"\n{machine}; {ceiling} TFLOP/s by products of large square matrices, of which ours use: {shares}.")


def wall(study: str) -> None:
    """How long a study took, and where."""
    of = json.loads((FIGURES / study / "wall.json").read_text())
    where = f"{of['cores']} cores of {of['machine']['cpu']} ({of['machine']['device']})"
    if "peak_memory_gb" in of:  # of all processes at once, as earlier runs counted it
        memory = f"at most {of['peak_memory_gb']:.1f} GB"
    else:
        memory = f"the largest process had {of['largest_process_gb']:.1f} GB"
    print(f"{of['seconds'] / 60:.1f} minutes on {where}, {memory}, torch {of['machine']['torch']}.")
