"""Numbers in the documentation come from files: copy a study's figures to ``figures/``, fill the marked blocks.

    python -m icssl_lib.runs publish config/quick.yaml
    python -m icssl_lib.publish                           only fills the blocks

A block is ``<!-- icssl: STUDY WHAT -->`` to ``<!-- /icssl -->`` in README.md or docs/*.md, with WHAT one of
table2, differences, tail, cost, or the name of a .csv or .txt file in ``figures/STUDY/``. A test fails when a block is
not what its files say.
"""

import json
import re
import shutil
from pathlib import Path

import pandas as pd

from icssl_lib.metrics import format_table2, method_name

BLOCK = re.compile(r"(<!-- icssl: (?P<study>[\w-]+) (?P<what>\w+) -->\n).*?(<!-- /icssl -->)", re.DOTALL)


def publish(study: str, out: Path, root: Path) -> list[Path]:
    """Copy figures with their tables, but none that shows products, results.csv and wall.json of a finished run; fill
    the blocks.

    Raises: FileNotFoundError: the run is not finished. Returns: the documents that changed.
    """
    target = root / "figures" / study
    shutil.rmtree(target, ignore_errors=True)
    # Maps and neighbours show products: pictures and titles of a catalogue that may be nobody's to publish.
    shutil.copytree(out / "figures", target, ignore=shutil.ignore_patterns("*_maps.*", "*_neighbours.*"))
    shutil.copy(out / "results.csv", target / "results.csv")
    if (out / "wall.json").is_file():  # a study of which only a part was collected has none
        shutil.copy(out / "wall.json", target / "wall.json")
    return refill(root)


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
    writers = {"table2": _table2, "differences": _differences, "tail": _tail, "cost": _cost}

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
    shown = rows.difference.map("{:+.3f}".format) + rows.apply(lambda r: f" [{r.low:+.3f}, {r.high:+.3f}]", axis=1)
    fractions = list(rows.fraction.unique())
    lines = ["| | | " + " | ".join(f"{f:.0%}" for f in fractions) + " |", "|---" * (2 + len(fractions)) + "|"]
    for (dataset, method), group in rows.assign(shown=shown).groupby(["dataset", "method"], sort=False):
        cells = group.set_index("fraction").shown.reindex(fractions)
        lines.append(f"| {dataset} | {method_name(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
