"""Accuracy, macro-F1 of head and tail, and what a difference between two methods is worth.

Everything here reads tables: ``predictions`` (one row per dataset, method, fraction, seed and Test item;
columns ``dataset, method, fraction, seed, id, label, predicted``) and ``results`` (one row per dataset,
method, fraction and seed; one column per metric). Nothing trains, nothing reads files.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
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
Pair = tuple[str, str]  # a method, and the one that it is compared with
ALL = "all"  # in column dataset: over all datasets


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
    widest: float | None = None,
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
        widest: a curve bends, so a dataset has no rows if the baseline has neighbouring fractions further apart than
            so many times, or only one; None: all are taken.

    Returns:
        Columns dataset, method, fraction, factor, low, high (95% percentile interval); the baseline has no rows.

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
        if widest and (len(fractions) < 2 or (fractions[1:] / fractions[:-1]).max() > widest):
            continue
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


def compare(
    predictions: pd.DataFrame,
    pairs: Sequence[Pair],
    head_tail: Mapping[str, HeadTail],
    metrics: Sequence[str] = ("accuracy", "tail_macro_f1"),
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Any method against any other: ``paired_bootstrap`` of each pair, per dataset and over all, with p-values.

    Every dataset draws its own items and seeds. In the rows of dataset "all" the statistic is the mean of the
    datasets' differences, so it speaks of these datasets, not of others.

    p inverts the percentile interval: twice the smaller share of resamples at or beyond 0, as (1 + count) / (1 + n), so
    never 0 (Davison and Hinkley, 1997, Bootstrap Methods, ch. 4), at most 1. p_holm is Holm's (1979) over the
    fractions of one dataset, pair and metric; nothing corrects for the number of pairs.

    Args:
        predictions: any number of datasets, fractions, methods and seeds.
        pairs: (method, against); where a dataset or fraction lacks one of the two, the row is left out.
        head_tail: dataset -> (head labels, tail labels).

    Returns:
        Columns dataset, method, against, metric, fraction, difference, low, high (95%), p, p_holm. All nan where no
        class counts.

    Raises:
        ValueError: a method without any predictions, methods of a pair that do not cover the same seeds and items, or a
            dataset named "all".
    """
    found = _all_gaps(predictions, pairs, metrics, n, seed, head_tail)
    keys = ["dataset", "method", "against", "metric", "fraction"]
    rows = [(*key, *_interval(gap), _p_value(gap)) for key, gap in found.items()]
    table = pd.DataFrame(rows, columns=[*keys, *Interval._fields, "p"])
    return table.assign(p_holm=table.groupby(keys[:-1], sort=False)["p"].transform(holm))


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values that keep the chance of any false rejection among them (Holm, 1979, Scand. J. Stat. 6:65).

    Args:
        p: (m,); nan, a test that was not made, stays nan and does not count.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # nan sorts to the end
    adjusted = np.full(len(p), np.nan)
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps * p[order]), 1)
    return adjusted


def ablations(table: pd.DataFrame, variants: Sequence[tuple[str, str, str, object, object]]) -> pd.DataFrame:
    """What each changed setting does: the rows of ``compare`` by setting and value.

    Args:
        table: of ``compare``, with the pair (variant, of) of each variant; others are left out.
        variants: (variant, of, setting, value, reference): "adapt.alpha", 0.25, and the value of method ``of``.

    Returns:
        Columns setting, value, reference (both as text), variant, of, dataset, fraction, metric, difference, low, high,
        p, p_holm, in the order of ``variants``.
    """
    names = pd.DataFrame(variants, columns=["variant", "of", "setting", "value", "reference"]).astype(str)
    rows = names.merge(table.rename(columns={"method": "variant", "against": "of"}), "inner", ["variant", "of"])
    order = ["setting", "value", "reference", "variant", "of", "dataset", "fraction", "metric"]
    return rows[[*order, *Interval._fields, "p", "p_holm"]]


def share_kept(
    predictions: pd.DataFrame,
    methods: Sequence[str],
    duals: Sequence[str],
    baseline: str = "origin",
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of what a picture at inference adds to accuracy a method keeps that reads the title alone.

    share = (method - baseline) / (dual - baseline) of mean accuracies, on the same resamples above and below the line;
    its interval is their percentiles. 1: as good as with the picture; negative: below the baseline. It is not defined
    (nan) where the interval of dual - baseline does not lie above 0: there is no gain to keep a share of.

    Args:
        methods: those that read titles alone.
        duals: those that are shown title and picture; without any there are no rows.

    Returns:
        Columns dataset ("all": shares of the datasets' mean gains), method, dual, fraction, gain (method - baseline),
        dual_gain, dual_low, dual_high (dual - baseline with its 95% interval), share, low, high.

    Raises:
        ValueError: as ``compare``.
    """
    gains = _all_gaps(predictions, [(m, baseline) for m in dict.fromkeys([*methods, *duals])], ["accuracy"], n, seed)
    rows = []
    for (dataset, method, _, metric, fraction), gain in gains.items():
        for dual in duals if method in methods else ():
            whole = gains.get((dataset, dual, baseline, metric, fraction))
            if whole is None:
                continue
            of = _interval(whole)
            share = np.divide(gain, whole, out=np.full_like(gain, np.nan), where=(whole != 0) & (of.low > 0))
            rows.append((dataset, method, dual, fraction, gain[0], *of, *_interval(share)))
    columns = ["dataset", "method", "dual", "fraction", "gain", "dual_gain", "dual_low", "dual_high"]
    return pd.DataFrame(rows, columns=[*columns, "share", "low", "high"])


def gain_by_class_size(
    predictions: pd.DataFrame,
    sizes: pd.DataFrame,
    methods: Sequence[str],
    baseline: str = "origin",
    bins: int | None = None,
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Recall of small and of large classes, method minus baseline: mean over the classes of a bin, each counted once.

    Resamples as in ``paired_bootstrap``; a class without items in a resample is left out of that resample's mean.

    Args:
        predictions: rows of ``baseline`` and ``methods`` wherever a method is to be compared.
        sizes: columns dataset, label, count (instances in all of Train, whatever the fraction), ``report.class_sizes``.
        bins: None: powers of two (0; 1; 2 to 3; 4 to 7; ...); a number: so many quantiles of the classes' sizes. The
            same for all datasets.

    Returns:
        Columns dataset ("all": the classes of all datasets in one bin), method, fraction, at_least and at_most (size
        of a class in the bin), classes and items (in Test), difference, low, high; bins without classes in Test are
        left out.
    """
    edges = _size_edges(sizes["count"].to_numpy(), bins)
    found: dict[tuple[str, float, str], list[np.ndarray]] = {}
    held: dict[tuple[str, float], np.ndarray] = {}
    for (dataset, fraction), group in predictions.groupby(["dataset", "fraction"], sort=False):
        here = [m for m in methods if (group["method"] == m).any()]
        label, predicted = _aligned(group, [baseline, *here])
        counts = sizes[sizes["dataset"] == dataset].set_index("label")["count"]
        classes, items = np.unique(label, return_counts=True)
        bin_of = np.searchsorted(edges, counts.reindex(classes, fill_value=0), "right") - 1
        held[dataset, fraction] = np.stack([np.bincount(bin_of, w, len(edges) - 1) for w in (None, items)])
        own = _own_seed(seed, dataset)
        sums = {m: _recall_sums(label, p, bin_of, len(edges) - 1, n, own) for m, p in predicted.items()}
        for m in here:
            alive, reference = sums[m][1], sums[baseline][0]
            gap = np.stack([_seed_means(g, own) for g in np.moveaxis(sums[m][0] - reference, -1, 0)], axis=-1)
            found[dataset, fraction, m] = [gap, alive]  # both (1 + n, bins)
    rows = []
    fractions = sorted(predictions["fraction"].unique())
    for dataset, m, fraction in product([*predictions["dataset"].unique(), ALL], methods, fractions):
        parts = [key for key in found if key[1:] == (fraction, m) and dataset in (key[0], ALL)]
        if not parts:
            continue
        gap, alive = (sum(found[key][i] for key in parts) for i in range(2))
        classes, items = sum(held[key[:2]] for key in parts)
        mean = np.divide(gap, alive, out=np.full_like(gap, np.nan), where=alive > 0)
        rows += [
            (dataset, m, fraction, edges[b], edges[b + 1] - 1, classes[b], items[b], *_interval(mean[:, b]))
            for b in np.flatnonzero(classes)
        ]
    columns = ["dataset", "method", "fraction", "at_least", "at_most", "classes", "items", *Interval._fields]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[3:7], int))


def confusions(
    predictions: pd.DataFrame, method: str, baseline: str, fraction: float, top: int | None = 5
) -> pd.DataFrame:
    """Which classes a method no longer confuses, and which only it confuses.

    An item of one seed is won where the baseline calls it ``predicted``, wrongly, and the method names its label; lost
    where it is the other way round. Over all pairs of classes, won - lost is the difference of the numbers of hits.

    Args:
        top: pairs of classes to return per dataset, those with the largest won - lost and with the smallest; ties by
            name. None: all that are not even.

    Returns:
        Columns dataset, change (won or lost: the sign of won - lost), label, predicted, won, lost (items, summed over
        seeds), of (items of the class in Test, times seeds). The largest changes first.

    Raises:
        ValueError: as ``paired_bootstrap``.
    """
    frames = []
    for dataset, group in predictions[predictions["fraction"] == fraction].groupby("dataset", sort=False):
        label, predicted = _aligned(group, [method, baseline])
        ours, theirs = predicted[method].ravel(), predicted[baseline].ravel()
        true = np.tile(label, len(predicted[method]))
        items = pd.DataFrame({"label": true, "ours": ours, "theirs": theirs})
        sides = {
            "won": items[(ours == true) & (theirs != true)].groupby(["label", "theirs"]).size(),
            "lost": items[(theirs == true) & (ours != true)].groupby(["label", "ours"]).size(),
        }
        counts = pd.concat({k: s.rename_axis(["label", "predicted"]) for k, s in sides.items()}, axis=1)
        counts = counts.reindex(columns=list(sides)).fillna(0).astype(int).sort_index()
        net = counts["won"] - counts["lost"]
        counts = counts.assign(change=np.where(net > 0, "won", "lost"), net=net.abs())[net != 0]
        counts = counts.sort_values(["change", "net"], ascending=False, kind="stable")
        kept = counts.groupby("change", sort=False).head(len(counts) if top is None else top).reset_index()
        frames.append(kept.assign(dataset=dataset, of=kept["label"].map(pd.Series(true).value_counts())))
    columns = ["dataset", "change", "label", "predicted", "won", "lost", "of"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


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


def wide_compare(table: pd.DataFrame, rows: Sequence[str] = ("against", "method")) -> pd.DataFrame:
    """``compare`` or ``ablations`` of one dataset and metric as it is printed: difference [low, high], starred where
    p_holm < 0.05; a row per ``rows``, a column per fraction of Train.
    """
    names = {column: table[column].map(method_name) for column in rows if column in ("against", "method", "of")}
    return _by_fraction(table.assign(text=starred(table), **names), list(rows), "text")


def starred(table: pd.DataFrame) -> list[str]:
    """difference [low, high] of each row, with a star where p_holm < 0.05."""
    return [f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]{'*' * (r.p_holm < 0.05)}" for r in table.itertuples()]


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
    gaps = _gaps(group, [(m, baseline) for m in methods], metrics, n, seed, head, tail)
    return {(m, metric): _interval(gap) for (m, _, metric), gap in gaps.items()}


def _gaps(
    group: pd.DataFrame,
    pairs: Sequence[Pair],
    metrics: Sequence[str],
    n: int,
    seed: int,
    head: Labels,
    tail: Labels,
) -> dict[tuple[str, str, str], np.ndarray]:
    """(method, against, metric) -> (1 + n,) differences of one dataset and fraction; the sample's own is the first."""
    label, predicted = _aligned(group, list(dict.fromkeys(m for pair in pairs for m in pair)))
    values = {m: _bootstrap(label, p, metrics, n, seed, head, tail) for m, p in predicted.items()}
    return {
        (m, against, metric): _seed_means(values[m][metric] - values[against][metric], seed)
        for m, against in pairs
        for metric in metrics
    }


def _all_gaps(
    predictions: pd.DataFrame,
    pairs: Sequence[Pair],
    metrics: Sequence[str],
    n: int,
    seed: int,
    head_tail: Mapping[str, HeadTail] | None = None,
) -> dict[tuple[str, str, str, str, float], np.ndarray]:
    """(dataset, method, against, metric, fraction) -> (1 + n,) differences, dataset "all" among them; in this order."""
    if ALL in predictions["dataset"].to_numpy():
        raise ValueError(f"a dataset is named '{ALL}', which stands for all of them; rename it")
    known = set(predictions["method"])
    if missing := {m for pair in pairs for m in pair} - known:
        raise ValueError(f"no predictions of {sorted(missing)}; found: {', '.join(sorted(known))}")
    found = {}
    for (dataset, fraction), group in predictions.groupby(["dataset", "fraction"], sort=False):
        here = [pair for pair in pairs if set(pair) <= set(group["method"])]
        parts = head_tail[dataset] if head_tail else ((), ())
        if here:
            for key, gap in _gaps(group, here, metrics, n, _own_seed(seed, dataset), *parts).items():
                found[dataset, *key, fraction] = gap
    datasets = list(predictions["dataset"].unique())
    ordered = {}
    for dataset, pair, *rest in product([*datasets, ALL], pairs, metrics, sorted(predictions["fraction"].unique())):
        key = (*pair, *rest)
        gaps = [found[d, *key] for d in (datasets if dataset == ALL else [dataset]) if (d, *key) in found]
        defined = [gap for gap in gaps if not np.isnan(gap[0])] or gaps[:1]  # without a tail: left out
        if gaps:
            ordered[dataset, *key] = np.mean(defined, axis=0)
    return ordered


def _own_seed(seed: int, dataset: str) -> int:
    """A seed of a dataset's own, so that datasets are resampled independently, whatever others there are."""
    return seed + zlib.crc32(dataset.encode())


def _interval(gap: np.ndarray) -> Interval:
    """(1 + n,), the sample's own value first -> Interval; resamples in which it is not defined do not count."""
    drawn = gap[1:][~np.isnan(gap[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) and not np.isnan(gap[0]) else (np.nan, np.nan)
    return Interval(float(gap[0]), float(low), float(high))


def _p_value(gap: np.ndarray) -> float:
    drawn = gap[1:][~np.isnan(gap[1:])]
    if np.isnan(gap[0]) or not len(drawn):
        return float("nan")
    # Differences of sums that are equal in exact arithmetic may miss 0 by rounding: they count on either side.
    beyond = min((drawn <= 1e-12).sum(), (drawn >= -1e-12).sum())
    return float(min(1, 2 * (1 + beyond) / (1 + len(drawn))))


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
    # A column for each prediction of all items; a column for each item would take 25 times as long.
    table = group.pivot(index="id", columns=["method", "seed"], values="predicted").sort_index()
    seeds = {m: sorted(group.loc[group["method"] == m, "seed"].unique()) for m in methods}
    if len({tuple(s) for s in seeds.values()}) > 1 or table.isna().to_numpy().any():
        raise ValueError(f"{where}: methods must cover the same seeds and items to be paired; seeds: {seeds}")
    return _strings(truth), {m: np.stack([_strings(table[m, s]) for s in seeds[m]]) for m in methods}


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


def _size_edges(counts: np.ndarray, bins: int | None) -> np.ndarray:
    """Where bins of class sizes begin, and one past the largest: whole numbers, increasing."""
    end = int(counts.max()) + 1
    if bins is None:
        powers = 2 ** np.arange(int(end).bit_length())
        return np.array([0, *powers[powers < end], end])
    inner = np.ceil(np.quantile(counts, np.arange(1, bins) / bins)).astype(int)
    return np.unique([0, *inner, end])


def _recall_sums(
    label: np.ndarray, predicted: np.ndarray, bin_of: np.ndarray, bins: int, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the classes' recalls by bin, (1 + n, seeds, bins), and how many classes have items, (1 + n, bins).

    Args:
        bin_of: (K,) bins of the sorted classes of ``label``.
    """
    classes, true = np.unique(label, return_inverse=True)
    members = _one_hot(bin_of, bins)  # (bins, K)
    truth = _one_hot(true, len(classes))
    hits = [_one_hot(true, len(classes), p == label) for p in predicted]
    sums, alive = [], []
    for weights in _item_weights(n, len(label), seed):
        items = np.ascontiguousarray(weights.T)  # (N, chunk)
        support = truth @ items  # (K, chunk)
        recalls = [(hit @ items) / np.maximum(support, 1) for hit in hits]
        sums.append(np.stack([(members @ recall).T for recall in recalls], axis=1))
        alive.append((members @ (support > 0).astype(float)).T)
    return np.concatenate(sums), np.concatenate(alive)


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
