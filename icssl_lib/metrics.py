"""Accuracy, macro-F1 of head and tail, and what a difference between two methods is worth.

Everything here reads tables: ``predictions`` (one row per dataset, method, fraction, seed and Test item;
columns ``dataset, method, fraction, seed, id, label, predicted``) and ``results`` (one row per dataset,
method, fraction and seed; one column per metric). Nothing trains, nothing reads files.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import accuracy_score, f1_score

from icssl_lib.methods import METHODS
from icssl_lib.paper import TABLE2

METRICS = ("accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1")
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "head_macro_f1": "Head macro-F1",
    "tail_macro_f1": "Tail macro-F1",
}
Labels = Sequence[str]
HeadTail = tuple[Labels, Labels]


class Interval(NamedTuple):
    """A difference (method minus baseline) and its 95% bootstrap interval, in the metric's unit (0 to 1)."""

    difference: float
    low: float
    high: float


def method_name(method: str) -> str:
    """The name a reader sees; a method without an entry in ``methods.METHODS`` keeps its own."""
    return METHODS[method].title if method in METHODS else method


def accuracy(label: Labels, predicted: Labels) -> float:
    """Share of items whose predicted label is the true one; nan without items."""
    label, predicted = _pair(label, predicted)
    return float(accuracy_score(label, predicted)) if len(label) else float("nan")


def macro_f1(label: Labels, predicted: Labels, labels: Labels | None = None) -> float:
    """Unweighted mean of F1 over the classes that have true instances.

    Args:
        label: (N,) true labels.
        predicted: (N,) predicted labels.
        labels: the classes to average over; None: all. Those without a true instance in ``label`` are left
            out, so the classes that count depend on the items alone and are the same for every method
            (scikit-learn's default adds the classes that one method happened to predict). A false positive on
            a class that counts lowers its F1, whatever the item's true class.

    Returns:
        0 to 1, or nan when no class counts. A class that is never predicted has F1 = 0.
    """
    label, predicted = _pair(label, predicted)
    counted = np.unique(label) if labels is None else np.intersect1d(_strings(labels), label)
    if not len(counted):
        return float("nan")
    return float(f1_score(label, predicted, labels=counted, average="macro", zero_division=0))


def scores(label: Labels, predicted: Labels, head: Labels, tail: Labels) -> dict[str, float]:
    """The four metrics of one run: accuracy, macro-F1 over all classes, over ``head`` and over ``tail``."""
    classes = {"macro_f1": None, "head_macro_f1": head, "tail_macro_f1": tail}
    return {"accuracy": accuracy(label, predicted)} | {
        metric: macro_f1(label, predicted, labels) for metric, labels in classes.items()
    }


def paired_bootstrap(
    predictions: pd.DataFrame,
    method: str,
    baseline: str = "origin",
    metric: str = "accuracy",
    n: int = 2000,
    seed: int = 0,
    head: Labels = (),
    tail: Labels = (),
) -> Interval:
    """Difference of ``method`` from ``baseline`` with a 95% percentile interval over items x seeds.

    The two-way ("pigeonhole") bootstrap of Owen (2007, Ann. Appl. Stat. 1:386): each of ``n`` resamples draws
    items with replacement and, independently, training seeds with replacement; both methods are scored on the
    same draw. The statistic is the mean over seeds of the metric. Classes that count are those with true
    instances; one that vanishes from a resample is left out of that resample's mean. The interval
    errs on the wide side: chance that differs by item and seed enters with the items and again with the seeds.
    With three seeds the seeds' own share of the uncertainty is a rough estimate.

    Args:
        predictions: rows of one dataset and one fraction, ``method`` and ``baseline`` among them.
        metric: one of ``METRICS``. ``head_macro_f1`` needs ``head``, ``tail_macro_f1`` needs ``tail``.
        n: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        Interval of method minus baseline; all nan where no class counts.

    Raises:
        ValueError: several datasets or fractions, an unknown metric, a method without rows, or methods that
            do not cover the same seeds and items.
    """
    groups = predictions[["dataset", "fraction"]].drop_duplicates()
    if len(groups) != 1:
        raise ValueError(f"one dataset and one fraction expected, got {groups.to_numpy().tolist()}")
    return _intervals(predictions, [method], baseline, [metric], n, seed, head, tail)[method, metric]


def differences(
    predictions: pd.DataFrame,
    head_tail: Mapping[str, HeadTail],
    baseline: str = "origin",
    metrics: Sequence[str] = ("accuracy", "tail_macro_f1"),
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """``paired_bootstrap`` for every dataset, fraction, metric and every method but the baseline.

    Args:
        predictions: any number of datasets, fractions, methods and seeds.
        head_tail: dataset -> (head labels, tail labels).

    Returns:
        Columns dataset, method, fraction, metric, difference, low, high.
    """
    rows = []
    for (dataset, fraction), group in predictions.groupby(["dataset", "fraction"], sort=False):
        methods = [m for m in group["method"].unique() if m != baseline]
        found = _intervals(group, methods, baseline, metrics, n, seed, *head_tail[dataset])
        rows += [(dataset, m, fraction, metric, *interval) for (m, metric), interval in found.items()]
    return pd.DataFrame(rows, columns=["dataset", "method", "fraction", "metric", *Interval._fields])


def label_efficiency(
    results: pd.DataFrame,
    baseline: str = "origin",
    predictions: pd.DataFrame | None = None,
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How many times the labels ``baseline`` needs to be as accurate.

    factor = the fraction of Train at which the baseline reaches the method's accuracy, over the method's own
    fraction. The baseline's curve is its mean over seeds, made monotone (a dip with more labels does not
    count) and linear between the measured fractions. Where the baseline never gets there, the fraction is
    capped at the largest one measured (100%), so the factor is a lower bound; nothing is extrapolated below
    the smallest fraction, so there the factor is at least 1.

    Args:
        results: columns dataset, method, fraction, seed, accuracy.
        predictions: if given, resamples draw items as well as seeds; else seeds only (one seed: no width).

    Returns:
        Columns dataset, method, fraction, factor, low, high (95% percentile interval); the baseline has no ro

    Raises:
        ValueError: a dataset without the baseline, or a method whose seeds differ from the baseline's.
    """
    rows = []
    for dataset, group in results.groupby("dataset", sort=False):
        if predictions is None:
            values = _repeated(group, n)
        else:
            values = _resampled(predictions[predictions["dataset"] == dataset], n, seed)
        if baseline not in values:
            raise ValueError(f"{dataset}: no results of the baseline '{baseline}'; found: {', '.join(values)}")
        reference = values.pop(baseline)
        fractions = np.array(sorted(reference))
        curves = np.stack([_seed_means(reference[f], seed) for f in fractions], axis=1)  # (1 + n, F)
        curves = np.maximum.accumulate(curves, axis=1)
        seeds = reference[fractions[0]].shape[1]
        for method, points in values.items():
            for fraction, point in points.items():
                if point.shape[1] != seeds:
                    raise ValueError(f"{dataset}: '{method}' and '{baseline}' have different seeds; run the missing")
                factor = _reach(curves, _seed_means(point, seed), fractions) / fraction
                rows.append((dataset, method, fraction, factor[0], *np.percentile(factor[1:], [2.5, 97.5])))
    return pd.DataFrame(rows, columns=["dataset", "method", "fraction", "factor", "low", "high"])


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds.

    Returns:
        One row per dataset, method, fraction in order of appearance: ``seeds`` (their number), each metric's
        mean under its own name and its sample standard deviation as ``<metric>_sd`` (nan with one seed).
    """
    groups = results.groupby(["dataset", "method", "fraction"], sort=False)
    parts = [groups.size().rename("seeds")]
    for metric in (m for m in METRICS if m in results):
        parts += [groups[metric].mean(), groups[metric].std().rename(f"{metric}_sd")]
    return pd.concat(parts, axis=1).reset_index()


def table2(results: pd.DataFrame, paper: pd.DataFrame = TABLE2) -> pd.DataFrame:
    """``summary`` with the paper's accuracy beside ours, in column ``paper``.

    Args:
        paper: columns dataset, method, fraction, accuracy. A dataset has a counterpart where it bears a
            genre's name (in any case); elsewhere ``paper`` is nan.
    """
    ours = summary(results)
    keys = ours.assign(dataset=ours["dataset"].str.lower())[["dataset", "method", "fraction"]]
    return ours.assign(paper=keys.merge(paper, how="left")["accuracy"].to_numpy())


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """``table2`` as it is printed: accuracy, a row per dataset and method, the paper's after ours; a column per
    fraction of Train.
    """
    table = table.assign(method=table["method"].map(method_name))
    paper = table.dropna(subset="paper")
    paper = paper.assign(method="paper: " + paper["method"], accuracy=paper["paper"])
    return _by_fraction(pd.concat([table, paper]), ["dataset", "method"], "accuracy")


def wide_differences(table: pd.DataFrame) -> pd.DataFrame:
    """``differences`` as it is printed: difference [low, high], a row per dataset, metric and method, a column per
    fraction of Train.
    """
    text = [f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in table.itertuples()]
    table = table.assign(text=text, method=table["method"].map(method_name), metric=table["metric"].map(METRIC_NAMES))
    return _by_fraction(table, ["dataset", "metric", "method"], "text")


def format_table2(results: pd.DataFrame, paper: pd.DataFrame = TABLE2) -> str:
    """Table 2 as plain text: a block per dataset, ours and the paper's rows, a column per fraction of Train."""
    table = table2(results, paper)
    counts = " to ".join(str(c) for c in sorted({table["seeds"].min(), table["seeds"].max()}))
    lines = [f"Table 2. Test accuracy, mean over {counts} seed{'' if counts == '1' else 's'}, by fraction of Train"]
    rows = wide(table)
    width = 3 + max(len(name) for name in rows.index.get_level_values("method"))
    for dataset, block in rows.groupby("dataset", sort=False):
        lines += ["", f"{dataset:<{width}}" + "".join(f"{name:>7}" for name in block)]
        for (_, name), row in block.iterrows():
            cells = "".join(f"{'-':>7}" if np.isnan(value) else f"{value:>7.3f}" for value in row)
            lines.append(f"  {name:<{width - 2}}{cells}")
    if table["paper"].notna().any():
        lines += ["", "paper: Chen and Chou (2022), Table 2; their catalogues, full-size BERT."]
    return "\n".join(lines)


def _by_fraction(table: pd.DataFrame, rows: list[str], value: str) -> pd.DataFrame:
    """A column per fraction, named 5%, 10%, ...; rows grouped, in order of appearance."""
    order = table[rows].drop_duplicates().sort_values(rows[:-1], key=_first_seen, kind="stable")
    found = table.pivot(index=rows, columns="fraction", values=value).loc[pd.MultiIndex.from_frame(order)]
    return found.set_axis([f"{100 * f:g}%" for f in found], axis=1)


def _first_seen(column: pd.Series) -> pd.Series:
    return pd.Series(pd.factorize(column)[0], index=column.index)


def _strings(labels: Labels) -> np.ndarray:
    return np.asarray(labels).astype(str)


def _pair(label: Labels, predicted: Labels) -> tuple[np.ndarray, np.ndarray]:
    label, predicted = _strings(label), _strings(predicted)
    if label.shape != predicted.shape or label.ndim != 1:
        raise ValueError(f"one prediction per label expected: label {label.shape}, predicted {predicted.shape}")
    return label, predicted


def _intervals(
    group: pd.DataFrame,
    methods: Sequence[str],
    baseline: str,
    metrics: Sequence[str],
    n: int,
    seed: int,
    head: Labels,
    tail: Labels,
) -> dict[tuple[str, str], Interval]:
    """Intervals of one dataset and fraction; every method and metric is scored on the same resamples."""
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ValueError(f"unknown metric {unknown}; known: {', '.join(METRICS)}")
    label, predicted = _aligned(group, [baseline, *methods])
    values = {m: _bootstrap(label, p, metrics, n, seed, head, tail) for m, p in predicted.items()}
    found = {}
    for m in methods:
        for metric in metrics:
            gap = _seed_means(values[m][metric] - values[baseline][metric], seed)  # (1 + n,)
            drawn = gap[1:][~np.isnan(gap[1:])]
            low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
            found[m, metric] = Interval(float(gap[0]), float(low), float(high))
    return found


def _aligned(group: pd.DataFrame, methods: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True labels (N,) and, per method, predictions (seeds, N): items and seeds in one order throughout."""
    where = f"{group['dataset'].iloc[0]} at {group['fraction'].iloc[0]:.0%}"
    found = group["method"].unique()
    if missing := [m for m in methods if m not in found]:
        raise ValueError(f"{where}: no predictions of {missing}; found: {', '.join(found)}")
    group = group[group["method"].isin(methods)]
    truth = group[["id", "label"]].drop_duplicates().set_index("id")["label"].sort_index()
    if not truth.index.is_unique:
        raise ValueError(f"{where}: item '{truth.index[truth.index.duplicated()][0]}' has two true labels")
    table = group.pivot(index=["method", "seed"], columns="id", values="predicted").sort_index(axis=1)
    seeds = {m: sorted(group.loc[group["method"] == m, "seed"].unique()) for m in methods}
    if len({tuple(s) for s in seeds.values()}) > 1 or table.isna().to_numpy().any():
        raise ValueError(f"{where}: methods must cover the same seeds and items to be paired; seeds: {seeds}")
    return _strings(truth), {m: np.stack([_strings(table.loc[(m, s)]) for s in seeds[m]]) for m in methods}


def _counts(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """(n, size): how often each of ``size`` things stands in each of ``n`` resamples with replacement."""
    drawn = rng.integers(0, size, size=(n, size)) + size * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size).astype(float)


def _item_weights(n: int, items: int, seed: int) -> Iterator[np.ndarray]:
    """Weights (chunk, items): the sample itself first, then ``n`` resamples, in chunks of some 16 MB."""
    yield np.ones((1, items))
    rng = np.random.default_rng([seed, 0])
    chunk = max(1, 2_000_000 // items)
    for start in range(0, n, chunk):
        yield _counts(rng, min(chunk, n - start), items)


def _seed_means(values: np.ndarray, seed: int) -> np.ndarray:
    """(1 + n, seeds) -> (1 + n,): means over all seeds in row 0, over resampled seeds in the others."""
    n, seeds = len(values) - 1, values.shape[1]
    weights = np.vstack([np.ones(seeds), _counts(np.random.default_rng([seed, 1]), n, seeds)])
    return (values * weights).sum(axis=1) / seeds


def _bootstrap(
    label: np.ndarray,
    predicted: np.ndarray,
    metrics: Sequence[str],
    n: int,
    seed: int,
    head: Labels = (),
    tail: Labels = (),
) -> dict[str, np.ndarray]:
    """Each metric on the sample (row 0) and on ``n`` resamples of the items: metric -> (1 + n, seeds).

    Resamples are weights on items, so per-class counts are products of sparse one-hot matrices with them.
    """
    classes, true = np.unique(label, return_inverse=True)
    rows = {
        metric: np.flatnonzero(np.isin(classes, _strings(list(labels))))
        for metric, labels in (("macro_f1", classes), ("head_macro_f1", head), ("tail_macro_f1", tail))
        if metric in metrics
    }
    index = pd.Index(classes)
    # A predicted class without true instances gets -1: it does not count, but the item is a miss.
    called = [index.get_indexer(p) for p in predicted]
    hits = np.stack([c == true for c in called]).astype(float)  # (seeds, N)
    one_hot = [
        (_one_hot(true, len(classes), h), _one_hot(c, len(classes), c >= 0)) for c, h in zip(called, hits, strict=True)
    ]
    truth = _one_hot(true, len(classes))
    parts: dict[str, list[np.ndarray]] = {metric: [] for metric in metrics}
    for weights in _item_weights(n, len(label), seed):
        if "accuracy" in metrics:
            parts["accuracy"].append(weights @ hits.T / len(label))
        if rows:
            items = np.ascontiguousarray(weights.T)  # (N, chunk)
            support = truth @ items  # (K, chunk)
            alive = support > 0
            f1 = [2 * (hit @ items) / np.where(alive, support + call @ items, 1) for hit, call in one_hot]
            for metric, kept in rows.items():
                counted = alive[kept].sum(axis=0).astype(float)
                counted[counted == 0] = np.nan
                parts[metric].append(np.stack([(f * alive)[kept].sum(axis=0) / counted for f in f1], axis=1))
    return {metric: np.concatenate(part) for metric, part in parts.items()}


def _one_hot(codes: np.ndarray, classes: int, kept: np.ndarray | None = None) -> sparse.csr_matrix:
    """(classes, N) with a 1 at (codes[i], i) for the items ``kept`` (None: all)."""
    items = np.arange(len(codes)) if kept is None else np.flatnonzero(kept)
    return sparse.csr_matrix((np.ones(len(items)), (codes[items], items)), shape=(classes, len(codes)))


def _repeated(group: pd.DataFrame, n: int) -> dict[str, dict[float, np.ndarray]]:
    """Accuracy per method and fraction as (1 + n, seeds), the items not resampled."""
    values: dict[str, dict[float, np.ndarray]] = {}
    for (method, fraction), rows in group.groupby(["method", "fraction"], sort=False):
        by_seed = rows.sort_values("seed")["accuracy"].to_numpy()
        values.setdefault(method, {})[fraction] = np.tile(by_seed, (1 + n, 1))
    return values


def _resampled(predictions: pd.DataFrame, n: int, seed: int) -> dict[str, dict[float, np.ndarray]]:
    """Accuracy per method and fraction as (1 + n, seeds), on the same resamples of the items throughout."""
    values: dict[str, dict[float, np.ndarray]] = {}
    for fraction, group in predictions.groupby("fraction", sort=False):
        label, predicted = _aligned(group, list(group["method"].unique()))
        for method, p in predicted.items():
            values.setdefault(method, {})[fraction] = _bootstrap(label, p, ["accuracy"], n, seed)["accuracy"]
    return values


def _reach(curves: np.ndarray, target: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """The fraction at which each non-decreasing curve (B, F) reaches its target (B,), within the ends."""
    above = curves >= target[:, None]
    end = np.where(above.any(axis=1), above.argmax(axis=1), len(fractions) - 1)  # first point at or above
    start = np.maximum(end - 1, 0)
    row = np.arange(len(curves))
    low, high = curves[row, start], curves[row, end]
    share = np.divide(target - low, high - low, out=np.ones_like(low), where=high > low)
    return fractions[start] + np.clip(share, 0, 1) * (fractions[end] - fractions[start])
