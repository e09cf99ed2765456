"""Where do a finished study's minutes go?

    .venv/bin/python tests/profile_study.py runs/quick [--cores 2 4] [--out figures/bench-half/profile_after.csv]

Per stage, from Snakemake's log and the executed notebooks: jobs, their core-seconds from start to end, those of the
notebooks' longest cells (the work itself: training, ingest, projection) and of their other cells (imports, drawing,
tables), and what is left: the start of kernel and job, and writing. share: of all jobs' seconds.

--cores tells how long the same jobs would take at most on so many cores of this kind.
"""

import argparse
import json
import re
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import pandas as pd

from icssl_lib.images import written_whole

COLUMNS = ["stage", "jobs", "seconds", "work", "other_cells", "start_and_end", "share"]


def jobs(log: str) -> dict[str, list[float]]:
    """Seconds of each finished job by rule, from Snakemake's log; a job that ran twice counts as it ended."""
    now, rule, of_job, ended = None, "", {}, defaultdict(list)
    for line in log.splitlines():
        if match := re.match(r"\[(\w{3} \w{3} +\d+ [\d:]+ \d{4})\]", line):
            now = datetime.strptime(match[1], "%a %b %d %H:%M:%S %Y")
        elif match := re.match(r"(?:local)?rule (\w+):", line):
            rule = match[1]
        elif match := re.match(r"    jobid: (\d+)", line):
            of_job[match[1]] = rule, now
        elif (match := re.match(r"Finished jobid: (\d+)", line)) and match[1] in of_job:
            name, started = of_job[match[1]]
            ended[name].append((now - started).total_seconds())
    return ended


def cells(notebook: Path) -> tuple[str, float, float]:
    """Its stage (00_pretrain), and seconds of the longest cell and of the others."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    times = [cell["metadata"].get("papermill", {}).get("duration") or 0.0 for cell in content["cells"]]
    return notebook.name.split("-")[0].removesuffix(".ipynb"), max(times), sum(times) - max(times)


RULES = {
    "pretrain": "00_pretrain",
    "catalogue": "01_catalogue",
    "adapt": "02_adapt",
    "finetune": "03_finetune",
    "table2": "04_table2",
    "figure5": "05_figure5",
    "explore": "explore_embeddings",
    "cost": "06_cost",
    "beyond": "07_beyond",
    "ablations": "08_ablations",
}


def at_most(seconds: dict[str, list[float]], cores: int) -> float:
    """Seconds on so many cores by list scheduling, whatever the order in which jobs are begun, as long as no core waits
    that has one: work / cores + (1 - 1 / cores) * the longest chain (Graham, 1969), and in full what has all cores.

    No chain is longer than the longest jobs of all rules together, of fine-tuning two: one may wait for another's
    weights. seconds: of each rule's jobs, as `jobs` returns them.
    """
    alone = sum(seconds.get("cost", []))
    shared = {rule: each for rule, each in seconds.items() if rule not in ("cost", "all")}
    chain = sum(max(each) for each in shared.values()) + max(shared.get("finetune", [0]))
    return sum(map(sum, shared.values())) / cores + (1 - 1 / cores) * chain + alone


def profile(out: Path) -> pd.DataFrame:
    """One row per stage, in the order of the DAG.

    Raises: SystemExit: no study has run to its end there.
    """
    log, notebooks = out / "study.log", sorted((out / "notebooks").glob("*.ipynb"))
    if not log.is_file() or not notebooks:
        raise SystemExit(f"{out}: no finished study; run `make study`")
    work, other = defaultdict(float), defaultdict(float)
    for notebook in notebooks:
        stage, longest, rest = cells(notebook)
        work[stage] += longest
        other[stage] += rest
    rows = []
    for rule, seconds in jobs(log.read_text(errors="replace")).items():
        stage = RULES.get(rule, rule)
        inside = work[stage] + other[stage]
        rows.append([stage, len(seconds), sum(seconds), work[stage], other[stage], max(0.0, sum(seconds) - inside)])
    table = pd.DataFrame(rows, columns=COLUMNS[:-1])
    table = table[table.stage != "all"]
    return table.assign(share=table.seconds / table.seconds.sum()).round(dict.fromkeys(COLUMNS[2:6], 1) | {"share": 3})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default="runs/quick")
    parser.add_argument("--cores", type=int, nargs="+", default=[], help="how long it would take on so many")
    parser.add_argument("--out", type=Path, help="a CSV of the stages, for the documentation")
    parser.add_argument("--bounds", type=Path, help="a CSV of what --cores asks")
    options = parser.parse_args()
    table = profile(options.folder)
    wall = json.loads((options.folder / "wall.json").read_text())
    busy = table.seconds.sum() / (wall["seconds"] * wall["cores"])
    print(table.to_string(index=False))
    print(f"{wall['seconds']:.0f} s on {wall['cores']} cores, which had a job for {busy:.0%} of the time")
    ended = jobs((options.folder / "study.log").read_text(errors="replace"))
    minutes = [[at_most(ended, n) / 60, wall["seconds"] / 60 if n == wall["cores"] else None] for n in options.cores]
    bounds = pd.DataFrame(minutes, options.cores, ["at_most_minutes", "real_minutes"]).rename_axis("cores").round(1)
    if options.cores:
        print(bounds.to_string(na_rep="-"))
    for path, made in ((options.out, table.set_index("stage")), (options.bounds, bounds)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as part:
                made.to_csv(part)


if __name__ == "__main__":
    main()
