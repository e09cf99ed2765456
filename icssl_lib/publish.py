"""Numbers in the documentation come from files: copy a study's figures to ``figures/``, fill the marked blocks.

    python -m icssl_lib.runs publish config/quick.yaml
    python -m icssl_lib.publish                           only fills the blocks

A block is ``<!-- icssl: STUDY WHAT -->`` to ``<!-- /icssl -->`` in README.md or docs/*.md, with WHAT one of table2,
differences, tail, compare, compare_tail, recommended, share_kept, factor, ablations, deployment, cost, speed, or the
name of a .csv or .txt file in ``figures/STUDY/``. A test fails when a block is not what its files say.
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd

from icssl_lib.deploy import WHAT
from icssl_lib.images import folder_written_whole
from icssl_lib.methods import METHODS
from icssl_lib.metrics import format_table2, holm, method_name, starred

BLOCK = re.compile(r"(<!-- icssl: (?P<study>[\w-]+) (?P<what>\w+) -->\n).*?(<!-- /icssl -->)", re.DOTALL)


def publish(study: str, out: Path, root: Path, words: bool = True) -> list[Path]:
    """Copy figures with their tables, but none that shows products, results.csv and wall.json of a finished run, count
    where its classifiers were trained (hardware.csv), and fill the blocks.

    Args: words: False leaves out what names the catalogue's classes, which may be nobody's to publish either.

    Raises: FileNotFoundError: the run is not finished. Returns: the documents that changed.
    """
    for path in (out / "figures", out / "results.csv"):
        if not path.exists():
            again = f"`python -m icssl_lib.runs study CONFIG --out {out}`, with the configuration of '{study}'"
            raise FileNotFoundError(f"{path}: not there, the run is absent or not finished; run {again}, to its end")
    where = hardware(out)
    # Maps and neighbours show products: pictures and titles of a catalogue that may be nobody's to publish.
    kept_back = ["*_maps.*", "*_neighbours.*", *([] if words else ["confusions.*"])]
    with folder_written_whole(root / "figures" / study) as target:
        left_out = shutil.ignore_patterns(*kept_back)
        shutil.copytree(out / "figures", target, ignore=left_out, dirs_exist_ok=True)
        shutil.copy(out / "results.csv", target / "results.csv")
        where.to_csv(target / "hardware.csv", index=False)
        if (out / "wall.json").is_file():  # a study of which only a part was collected has none
            shutil.copy(out / "wall.json", target / "wall.json")
    return refill(root)


def hardware(out: Path) -> pd.DataFrame:
    """How many of a run's classifiers were recorded where, by its records: where, classifiers. TF-IDF is of the CPU."""
    counts: Counter[str] = Counter()
    for path in sorted((out / "records").rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        about, words = record["machine"], METHODS.get(record["method"], METHODS["origin"]).classifier == "tfidf"
        on_cpu = words or "cpu" in (about["device"], record["settings"]["runtime"]["device"])
        where = about["cpu"] if on_cpu else about["device"]
        counts[f"{where}, {'TF-IDF' if words else record['precision']}"] += len(record["fractions"])
    return pd.DataFrame(counts.most_common(), columns=["where", "classifiers"])


def refill(root: Path) -> list[Path]:
    """Fill the blocks of all documents; returns those that changed."""
    changed = []
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        filled = fill(text, root / "figures")
        if filled != text:
            path.write_text(filled, encoding="utf-8")
            changed.append(path)
    return changed


def documents(root: Path) -> list[Path]:
    """The documents that may hold blocks."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def fill(text: str, figures: Path) -> str:
    """The text with each block's content made anew from the files in ``figures/<study>/``."""
    writers = {
        "table2": _table2,
        "differences": _differences,
        "tail": _tail,
        "compare": _compare,
        "compare_tail": _compare_tail,
        "recommended": _compare_recommended,
        "share_kept": _share_kept,
        "factor": _factor,
        "ablations": _ablations,
        "deployment": _deployment,
        "cost": _cost,
        "speed": _speed,
    }

    def content(match: re.Match) -> str:
        folder, what = figures / match["study"], match["what"]
        if what in writers:
            filled = writers[what](folder)
        elif (folder / f"{what}.csv").is_file():
            filled = _rows(pd.read_csv(folder / f"{what}.csv", dtype=str, keep_default_na=False))
        else:
            filled = f"```text\n{(folder / f'{what}.txt').read_text(encoding='utf-8').rstrip()}\n```"
        return f"{match[1]}{filled}\n{match[4]}"

    return BLOCK.sub(content, text)


def _rows(frame: pd.DataFrame) -> str:
    """A table of few rows in Markdown, each of them a column."""
    lines = [f"| {name.replace('_', ' ')} | " + " | ".join(frame[name]) + " |" for name in frame]
    return "\n".join([lines[0], "|---" * (1 + len(frame)) + "|", *lines[1:]])


def _table2(folder: Path) -> str:
    return f"```text\n{format_table2(pd.read_csv(folder / 'results.csv'))}\n```"


def _differences(folder: Path) -> str:
    return _intervals(folder, "accuracy")


def _tail(folder: Path) -> str:
    return _intervals(folder, "tail_macro_f1")


def _intervals(folder: Path, metric: str) -> str:
    """A Markdown table of differences from origin with their 95% intervals."""
    rows = pd.read_csv(folder / "differences.csv").query("metric == @metric")
    shown = [f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in rows.itertuples()]
    return _by_fraction(rows.assign(shown=shown), {"dataset": "", "method": ""})


def _compare(folder: Path, metric: str = "accuracy") -> str:
    """Each method less the baseline over all datasets."""
    rows = pd.read_csv(folder / "compare.csv").query("metric == @metric and dataset == 'all'")
    rows = rows[rows["against"] == rows["against"].iloc[0]]
    text = _by_fraction(rows.assign(shown=starred(rows)), {"method": "method", "against": "less"})
    return f"{text}\n\n{_STARS}"


_STARS = "Means over the data sets; * marks p < 0.05 by Holm over the fractions of a row."


def _compare_recommended(folder: Path) -> str:
    """What is recommended less ConVIRT, itself without TF-IDF, its controls and the best that sees pictures."""
    controls = ["recommended_shuffled", "recommended_origin"]
    rows = pd.read_csv(folder / "compare.csv").query("metric == 'accuracy' and against == 'recommended'")
    rows = rows[rows["method"].isin(["convirt", "self_trained_names", *controls, "dual_convirt"])]
    if rows["dataset"].nunique() == 2:  # one, and the mean over it
        rows = rows[rows["dataset"] != "all"]
    turned = {"difference": -rows["difference"], "low": -rows["high"], "high": -rows["low"]}
    rows = rows.assign(**turned)
    text = _by_fraction(rows.assign(shown=starred(rows)), {"dataset": "recommended, on", "method": "less"})
    return f"{text}\n\n{_STARS}"


def _compare_tail(folder: Path) -> str:
    return _compare(folder, "tail_macro_f1")


def _share_kept(folder: Path) -> str:
    """Shares over all datasets, in a row per method and dual-input model."""
    rows = pd.read_csv(folder / "share_kept.csv").query("dataset == 'all' and method in ['convirt', 'recommended']")
    shown = [f"{r.share:.2f} [{r.low:.2f}, {r.high:.2f}]" if r.share == r.share else "–" for r in rows.itertuples()]
    text = _by_fraction(rows.assign(shown=shown), {"method": "title alone", "dual": "of the gain of"})
    return f"{text}\n\n–: not defined, since the picture's own gain is not clear of zero."


def _factor(folder: Path) -> str:
    """How many times the labels the baseline needs, per dataset and method."""
    rows = pd.read_csv(folder / "factor.csv").dropna(subset="factor")
    shown = [f"{r.factor:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in rows.itertuples()]
    return _by_fraction(rows.assign(shown=shown), {"dataset": "", "method": ""})


def _ablations(folder: Path) -> str:
    """Changed settings over all datasets: accuracy less that of the method with the study's own value."""
    texts, numbers = ("value", "reference"), ("difference", "low", "high", "p", "p_holm")  # "None" and "0.10" are texts
    options = {"dtype": dict.fromkeys(texts, str), "na_values": dict.fromkeys(numbers, ""), "keep_default_na": False}
    table = pd.read_csv(folder / "ablations.csv", **options)
    rows = table.query("metric == 'accuracy' and dataset == 'all'")
    of_all = holm(rows["p"])  # of the p that no correction has touched yet
    shown = [cell + "*" * bool(p < 0.05) for cell, p in zip(starred(rows), of_all, strict=True)]
    rows = rows.assign(shown=shown, value=rows["value"] + " (" + rows["reference"] + ")")
    text = _by_fraction(rows, {"of": "method", "setting": "setting", "value": "value (study's)"})
    # A bootstrap's p is no smaller than its resamples allow, which over many cells may be too much.
    more = (
        "** over all cells of this table too." if of_all.min() < 0.05 else "None is below over all cells of this table."
    )
    return f"{text}\n\n{_STARS} {more}"


def _deployment(folder: Path) -> str:
    """What an answer costs, and what the exports do to accuracy, on the dataset that was measured."""
    cost, onnx = pd.read_csv(folder / "cost.csv"), pd.read_csv(folder / "onnx.csv")
    batches = list(cost["batch"].unique())
    heads = [f"p50 / p99 ms, batch {b}" for b in batches] + [f"products/s, batch {b}" for b in batches]
    heads = ["design", *heads, "peak MB", "weights MB", "bytes a request", "GFLOP"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (what, device), rows in cost.groupby(["what", "device"], sort=False):
        name = WHAT[what] if cost["device"].nunique() == 1 else f"{WHAT[what]} ({device})"
        cells = [f"{r.p50_ms:.3g} / {r.p99_ms:.3g}" for r in rows.itertuples()]
        cells += [f"{rate:,.0f}" for rate in rows["items_per_s"]]
        of = rows.iloc[-1]
        cells += [f"{of.peak_mb:,.0f}", f"{of.model_mb:.2f}", f"{of.bytes_per_request:,.0f}", f"{of.gflops:.4f}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    exported = f"Exports of `{onnx.method[0]}` on {onnx.products[0]} products of Dev:"
    lines += ["", f"{cost.dataset[0]}, threads: {cost.threads[0]}. {exported}"]
    for r in onnx.itertuples():
        lines.append(f"{WHAT[r.what]} {r.accuracy:.4f} ({r.same:.1%} of predictions as before, {r.model_mb:.2f} MB).")
    return "\n".join(lines)


def _by_fraction(rows: pd.DataFrame, heads: dict[str, str]) -> str:
    """The texts in column ``shown`` as a Markdown table: a row per ``heads`` (column: its title), a column per
    fraction of Train."""
    fractions = sorted(rows["fraction"].unique())
    titles = [*heads.values(), *(f"{f:.0%}" for f in fractions)]
    lines = ["|" + "".join(f" {title} |" if title else " |" for title in titles)]
    lines.append("|---" * (len(heads) + len(fractions)) + "|")
    for key, group in rows.groupby(list(heads), sort=False):
        names = [
            method_name(k) if c in ("method", "against", "dual", "of") else k for c, k in zip(heads, key, strict=True)
        ]
        cells = group.set_index("fraction")["shown"].reindex(fractions, fill_value="")
        lines.append(f"| {' | '.join([*names, *cells])} |")
    return "\n".join(lines)


def _speed(folder: Path) -> str:
    """A Markdown table of what `make bench` compared, and the machine it ran on."""
    table, about = pd.read_csv(folder / "bench.csv"), pd.read_csv(folder / "machine.csv")
    lines = ["| work | beside | ours, per s | theirs, per s | ratio | in the rounds |", "|---|---|---|---|---|---|"]
    for row in table.itertuples():
        both = (row.ours_per_s, row.peer_per_s)
        rates = " | ".join(f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in both)
        lines.append(f"| {row.work} | {row.peer} | {rates} | **{row.ratio:.2f}** | {row.low:.2f} to {row.high:.2f} |")
    shares = ", ".join(f"{row.work}: {row.share_of_ceiling:.0%}" for row in about.itertuples())
    ceilings = sorted(
        {f"{tflops:.3f}" for tflops in about.ceiling_tflops}
    )  # of each call of `make bench`, which differ
    ceiling = f"{' to '.join(ceilings[:: len(ceilings) - 1 or 1])} TFLOP/s by products of large square matrices"
    return "\n".join([*lines, "", f"{about.machine[0]}; {ceiling}, of which ours use: {shares}."])


def _cost(folder: Path) -> str:
    wall = json.loads((folder / "wall.json").read_text())
    machine = wall["machine"]
    return (
        f"{wall['seconds'] / 60:.1f} minutes on {wall['cores']} cores of {machine['cpu']} ({machine['device']}), "
        f"at most {wall['peak_memory_gb']:.1f} GB, torch {machine['torch']}."
    )


if __name__ == "__main__":
    for changed in refill(Path(__file__).resolve().parent.parent):
        print(f"filled {changed}")
