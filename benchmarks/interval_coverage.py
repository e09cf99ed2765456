"""How often a 95% interval holds a known difference between two methods, and how wide it is.

    .venv/bin/python benchmarks/interval_coverage.py     figures/bench/coverage.csv: about ten minutes on a free core

Two methods, of which `origin` is right about 60% of all items and the other about 70%: the true difference is .1, over
all items and all seeds. ``seed_sd`` is the standard deviation of the difference from seed to seed. Whether an item is
answered rightly depends on the item, on item and method, and on item, method and seed, a half, a quarter and a quarter.

Intervals: ``this``, the library's; ``this, from predictions``, the same by `metrics.paired_bootstrap` from a table of
predictions (few items, for it is slow); ``percentile``, in which seeds are resampled as items are.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from icssl_lib import metrics

RIGHT, AHEAD, RESAMPLES = 0.6, 0.1, 500


def made_up(rng: np.random.Generator, seeds: int, seed_sd: float, items: int) -> np.ndarray:
    """Which method (2) with which seed is right about which item, boolean (2, seeds, items)."""
    accuracy = np.full((2, seeds, 1), RIGHT)
    accuracy[1] += AHEAD + seed_sd * rng.standard_normal((seeds, 1))
    item, method, seed = (rng.standard_normal(shape) for shape in (items, (2, 1, items), (2, seeds, items)))
    return np.sqrt(0.5) * item + 0.5 * method + 0.5 * seed < norm.ppf(accuracy.clip(0, 1))


def resampled(rng: np.random.Generator, right: np.ndarray) -> np.ndarray:
    """Differences in accuracy by seed, of the sample and of resamples of its items, (1 + RESAMPLES, seeds).

    Items with the same differences are alike, so resamples draw how many there are of each kind."""
    difference = (right[1].astype(int) - right[0]).T  # (items, seeds)
    number = difference @ 3 ** np.arange(difference.shape[1])
    _, first, count = np.unique(number, return_index=True, return_counts=True)
    drawn = rng.multinomial(len(difference), count / len(difference), size=RESAMPLES)
    return np.vstack([count, drawn]) @ difference[first] / len(difference)


def percentile(rng: np.random.Generator, by_seed: np.ndarray) -> np.ndarray:
    """Seeds resampled with replacement, as often as `metrics.seed_means` draws, (1 + draws,)."""
    each = by_seed[1:].repeat(metrics.DRAWS, axis=0)
    chosen = rng.integers(0, each.shape[1], each.shape)
    return np.append(by_seed[0].mean(), np.take_along_axis(each, chosen, axis=1).mean(axis=1))


def from_predictions(right: np.ndarray) -> np.ndarray:
    """The library's draws, from a table with a row for each answer, (1 + draws,)."""
    method, seed, item = (index.ravel() for index in np.indices(right.shape))
    keys = {"dataset": "made up", "fraction": 1.0, "method": np.array(["origin", "convirt"])[method], "seed": seed}
    table = pd.DataFrame(keys | {"id": item, "label": "right", "predicted": np.where(right, "right", "wrong").ravel()})
    drawn = metrics.paired_bootstrap(table, [("convirt", "origin")], {}, ["accuracy"], RESAMPLES, over_all=False)
    return next(iter(drawn.values()))


def main(replications: int, out: Path) -> None:
    rows = []
    for setting, (seeds, seed_sd, items) in enumerate(product((3, 6), (0.0, 0.01, 0.05), (500, 20_000))):
        found: dict[str, list[metrics.Interval]] = {}
        for replication in range(replications):
            rng = np.random.default_rng([setting, replication])
            right = made_up(rng, seeds, seed_sd, items)
            by_seed = resampled(rng, right)
            draws = {"percentile": percentile(rng, by_seed)}
            draws["this"] = metrics.seed_means(by_seed[..., None], int(rng.integers(2**32)))[:, 0]
            if items == 500:
                draws["this, from predictions"] = from_predictions(right)
            for name, gap in draws.items():
                found.setdefault(name, []).append(metrics.interval(gap))
        for name, each in found.items():
            low, high = np.array([[one.low, one.high] for one in each]).T
            covered = float(np.mean((low <= AHEAD) & (high >= AHEAD)))
            rows.append((name, seeds, seed_sd, items, replications, covered, np.mean(high - low)))
            print(*rows[-1], flush=True)
    columns = ["interval", "seeds", "seed_sd", "items", "replications", "coverage", "mean_width"]
    table = pd.DataFrame(rows, columns=columns).sort_values(columns[:4])
    table.to_csv(out, index=False, float_format="%.4g", lineterminator="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("figures/bench/coverage.csv"))
    main(**vars(parser.parse_args()))
