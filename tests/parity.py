"""Does the fast path end with other accuracies than the plain one? Two results.csv of one study, paired run by run.

    .venv/bin/python tests/parity.py PLAIN/results.csv FAST/results.csv [--out parity.csv]

Both paths draw dropout from other random numbers, so single runs differ; what must not differ is the mean. Per method,
and over all: the mean difference in accuracy (fast less plain) over data sets, fractions and seeds, with a 95% interval
over the pairs of data set and seed, which share split and labels drawn. Fails when that over all does not hold 0.
"""

import argparse
from pathlib import Path

import pandas as pd
from scipy import stats

from icssl_lib.images import written_whole

KEYS = ["dataset", "method", "fraction", "seed"]


def paired(plain: pd.DataFrame, fast: pd.DataFrame) -> pd.DataFrame:
    """Columns KEYS and difference, for the runs that both have.

    Raises: SystemExit: the splits differ, or there is no common run.
    """
    both = plain.merge(fast, on=KEYS, suffixes=("_plain", "_fast"))
    if both.empty:
        raise SystemExit("the two tables have no run in common")
    if (both.split_hash_plain != both.split_hash_fast).any():
        raise SystemExit("the two tables are of different splits")
    return both[KEYS].assign(difference=both.accuracy_fast - both.accuracy_plain)


def interval(runs: pd.DataFrame) -> list[float]:
    """Mean difference and its 95% interval by Student's t over the means of (dataset, seed): they are few, nine in the
    quick study, and a percentile bootstrap of nine is too narrow."""
    means = runs.groupby(["dataset", "seed"])["difference"].mean().to_numpy()
    low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
    return [means.mean(), low, high]


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method and one for all: method, runs, difference, low, high, largest (of a single run)."""
    groups = [*runs.groupby("method", sort=False), ("all", runs)]
    rows = [[name, len(group), *interval(group), group.difference.abs().max()] for name, group in groups]
    return pd.DataFrame(rows, columns=["method", "runs", "difference", "low", "high", "largest"]).round(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plain", type=Path)
    parser.add_argument("fast", type=Path)
    parser.add_argument("--out", type=Path, help="a CSV for the documentation")
    options = parser.parse_args()
    found = table(paired(pd.read_csv(options.plain), pd.read_csv(options.fast)))
    print(found.to_string(index=False))
    if options.out:
        with written_whole(options.out) as part:
            found.to_csv(part, index=False)
    low, high = found.iloc[-1][["low", "high"]]
    if not low <= 0 <= high:
        raise SystemExit(f"the paths differ: {low} to {high} does not hold 0")


if __name__ == "__main__":
    main()
