"""Accuracy, macro-F1 of head and tail, and what a difference between two methods is worth.

Tables in, tables out: ``predictions`` (columns dataset, method, fraction, seed, id, label, predicted; a row per Test
item) and ``results`` (dataset, method, fraction, seed and the metrics). Metrics are 0 to 1, intervals 95%."""

import zlib
from collections import defaultdict, namedtuple
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import accuracy_score, f1_score
from statsmodels.stats.multitest import multipletests

from icssl_lib.methods import METHODS
from icssl_lib.paper import TABLE2

METRICS = ["accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1"]
METRIC_NAMES = dict(zip(METRICS, ("Accuracy", "Macro-F1", "Head macro-F1", "Tail macro-F1"), strict=True))
COMPARED = ("accuracy", "tail_macro_f1")
BASELINE = "origin"
ALL = "all"  # in column dataset: over all datasets
DRAWS = 10  # of the seeds' part, for each resample of items
Names = Sequence[str]  # labels, methods or metrics
Pairs = Sequence[tuple[str, str]]  # of methods: one, and what it is compared with
HeadTail = tuple[Names, Names]
Parts = Mapping[str, HeadTail]  # of each dataset the labels of head and of tail
# Method minus baseline, the ends of its 95% bootstrap interval, and its p-value; nan where it is not defined.
Interval = namedtuple("Interval", ["difference", "low", "high", "p"])


def method_name(method: str) -> str:
    """The name a reader sees; a method without an entry in ``methods.METHODS`` keeps its own."""
    return METHODS[method].title if method in METHODS else method


def accuracy(label: Names, predicted: Names) -> float:
    """Share of items whose predicted label is the true one; nan without items."""
    return float(accuracy_score(np.asarray(label, str), np.asarray(predicted, str))) if len(label) else float("nan")


def macro_f1(label: Names, predicted: Names, labels: Names | None = None) -> float:
    """Unweighted mean of F1 over those of ``labels`` (None: all) that have true instances; nan where none has.

    So the classes that count are the same for every method (scikit-learn's default adds those that one method happened
    to predict). A false positive on a class that counts lowers its F1, whatever the item's true class."""
    label, predicted = np.asarray(label, str), np.asarray(predicted, str)
    counted = np.unique(label) if labels is None else np.intersect1d(np.asarray(labels, str), label)
    f1 = f1_score(label, predicted, labels=counted, average="macro", zero_division=0) if len(counted) else np.nan
    return float(f1)


def scores(label: Names, predicted: Names, head: Names, tail: Names) -> dict[str, float]:
    """The four metrics of one run: accuracy, macro-F1 over all classes, over ``head`` and over ``tail``."""
    f1 = (macro_f1(label, predicted, labels) for labels in (None, head, tail))
    return dict(zip(METRICS, (accuracy(label, predicted), *f1), strict=True))


def paired_bootstrap(
    predictions: pd.DataFrame, pairs: Pairs, parts: Parts, metrics: Names = COMPARED, n: int = 2000, over_all=True
) -> dict[tuple, np.ndarray]:
    """How far one method is ahead of another, in the sample (row 0) and in `DRAWS` draws for each of ``n`` resamples.

    Each resample draws items with replacement, and the mean over training seeds with an error of Student's t
    (`seed_means`: resampled, S seeds cover at most 1 - 2 (1/2)^S); all methods are scored on the same draws. Classes
    that count are those with true instances; one that vanishes from a resample is left out of its mean. Intervals err
    on the wide side: chance that differs by item and seed enters twice (Owen, 2007, Ann. Appl. Stat. 1:386).

    Args:
        pairs: (method, against). A dataset or fraction that lacks one of a pair has no entry.
        metrics: of `METRICS`, or all of them with recall in place of F1, as in "head_macro_recall".
        over_all: each dataset draws its own items and seeds, and dataset "all" is the mean of the datasets' differences
            (of those that are defined), so it speaks of these datasets, not of others. False: draws are the same
            everywhere, and there is no "all".

    Returns: (dataset, method, against, metric, fraction) -> (1 + DRAWS n,)."""
    if missing := {m for pair in pairs for m in pair} - set(predictions["method"]):
        raise ValueError(f"no predictions of {sorted(missing)}; found: {sorted(predictions['method'].unique())}")
    if over_all and (predictions["dataset"] == ALL).any():
        raise ValueError(f"a dataset is named '{ALL}', which stands for all of them; rename it")
    found, together = {}, defaultdict(list)
    for (dataset, fraction), group in predictions.groupby(["dataset", "fraction"], sort=False):
        here = [pair for pair in pairs if set(pair) <= set(group["method"])]
        seed, group = zlib.crc32(dataset.encode()) if over_all else 0, group[group["method"].isin(sum(here, ()))]
        values = _scored(group, metrics, n, seed, parts.get(dataset, ((), ()))) if here else {}
        for m, against in here:
            drawn = seed_means(values[m] - values[against], seed)
            for k, metric in enumerate(metrics):
                found[dataset, m, against, metric, fraction] = drawn[:, k]
                together[ALL, m, against, metric, fraction].append(drawn[:, k])
    if over_all:
        for key, each in together.items():
            found[key] = np.mean([gap for gap in each if not np.isnan(gap[0])] or each[:1], axis=0)
    return found


def seed_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """(1 + n, S, k) -> (1 + DRAWS n, k): means over S seeds; all but the sample's own, row 0, with an error drawn: sd /
    sqrt(S) times Student's t with S - 1 degrees of freedom. One seed has none."""
    n, seeds, k = len(values) - 1, *values.shape[1:]
    mean, rng = values.mean(axis=1, keepdims=True), np.random.default_rng([seed, 1])
    normal, chi2 = rng.standard_normal((n, DRAWS, seeds)), rng.chisquare(max(1, seeds - 1), (n, DRAWS, 1))
    # The sum over seeds of normal (x - mean) has variance (S - 1) sd^2; over sqrt(chi2) it is sd t.
    drawn = mean[1:] + normal / np.sqrt(seeds * chi2) @ (values - mean)[1:]  # (n, DRAWS, k)
    return np.concatenate([mean[0], drawn.reshape(-1, k)])


def interval(gap: np.ndarray) -> Interval:
    """Of (1 + draws,), the sample's own value first; draws in which it is not defined do not count.

    p inverts the interval: twice the smaller share of draws at or beyond 0, as (1 + count) / (1 + draws), so never 0
    (Davison and Hinkley, 1997, Bootstrap Methods, ch. 4), at most 1."""
    drawn = gap[1:][~np.isnan(gap[1:])]
    if np.isnan(gap[0]) or not len(drawn):
        return Interval(float(gap[0]), np.nan, np.nan, np.nan)
    # Differences of sums that are equal in exact arithmetic may miss 0 by rounding: they count on either side.
    beyond = min((drawn <= 1e-12).sum(), (drawn >= -1e-12).sum())
    p = min(1, 2 * (1 + beyond) / (1 + len(drawn)))
    return Interval(float(gap[0]), *np.percentile(drawn, [2.5, 97.5]).tolist(), float(p))


def differences(predictions: pd.DataFrame, parts: Parts, metrics: Names = COMPARED, n: int = 2000) -> pd.DataFrame:
    """Of all methods from the baseline: dataset, method, fraction, metric, difference, low, high."""
    pairs = [(m, BASELINE) for m in predictions["method"].unique() if m != BASELINE]
    drawn = paired_bootstrap(predictions, pairs, parts, metrics, n, over_all=False)
    rows = [(d, m, fraction, metric, *interval(gap)[:3]) for (d, m, _, metric, fraction), gap in drawn.items()]
    return pd.DataFrame(rows, columns=["dataset", "method", "fraction", "metric", *Interval._fields[:3]])


def compare(predictions: pd.DataFrame, pairs: Pairs, parts: Parts, metrics: Names = COMPARED, n=2000) -> pd.DataFrame:
    """`paired_bootstrap` of all pairs: dataset, method, against, metric, fraction, difference, low, high, p, p_holm.

    p_holm is Holm's (1979) over all pairs and fractions of one dataset and metric."""
    rows = [(*key, *interval(gap)) for key, gap in paired_bootstrap(predictions, pairs, parts, metrics, n).items()]
    first = ["dataset", "method", "against", "metric"]
    table = pd.DataFrame(rows, columns=[*first, "fraction", *Interval._fields])
    table["p_holm"] = table.groupby(["dataset", "metric"])["p"].transform(holm)
    order = np.lexsort((table["fraction"], table.groupby(first, sort=False).ngroup()))
    return table.iloc[order].reset_index(drop=True)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, (m,); nan, a test that was not made, stays nan and does not count."""
    p = np.array(p, float)
    made = ~np.isnan(p)
    p[made] = multipletests(p[made], method="holm")[1]
    return p


def label_efficiency(runs: pd.DataFrame, baseline=BASELINE, n: int = 2000, widest=np.inf) -> pd.DataFrame:
    """How many times the labels the baseline needs to be as accurate: dataset, method, fraction, factor, low, high.

    factor = the fraction of Train at which the baseline reaches the method's accuracy, over the method's own. The
    baseline's curve is its mean over seeds, made monotone and linear in the logarithm of the fraction. Where it never
    gets there, 100% counts: a lower bound. Nothing is extrapolated below the smallest fraction: there it is at least 1.

    runs: predictions, whose items and seeds are resampled; or results, whose seeds alone are. widest: a dataset whose
    baseline was measured at fractions further apart (ratio), or at one, has no rows."""
    rows = []
    for dataset, group in runs.groupby("dataset", sort=False):
        if group.groupby(["method", "fraction"])["seed"].nunique().nunique() > 1:
            raise ValueError(f"{dataset}: methods have different seeds; run the missing ones")
        means: dict[tuple[str, float], np.ndarray] = {}  # of method and fraction, (1 + n,)
        for fraction, here in group.groupby("fraction", sort=False):
            if "predicted" in here:
                drawn = _scored(here, ["accuracy"], n)
            else:
                by_seed = here.sort_values("seed").groupby("method", sort=False)["accuracy"]
                drawn = {m: np.tile(values.to_numpy()[:, None], (1 + n, 1, 1)) for m, values in by_seed}
            means |= {(m, fraction): seed_means(values)[:, 0] for m, values in drawn.items()}
        fractions = np.array(sorted(fraction for m, fraction in means if m == baseline))
        if not len(fractions):
            raise ValueError(f"{dataset}: no results of the baseline '{baseline}'")
        if max(fractions[1:] / fractions[:-1], default=np.inf) > widest:
            continue
        curve = np.maximum.accumulate(np.stack([means[baseline, f] for f in fractions]))  # (F, draws)
        methods = [method for method in group["method"].unique() if method != baseline]
        for key in (key for key in product(methods, group["fraction"].unique()) if key in means):
            share = np.clip((means[key] - curve[:-1]) / np.maximum(np.diff(curve, axis=0), 1e-12), 0, 1)  # of each step
            factor = fractions[0] / key[1] * np.exp(np.diff(np.log(fractions)) @ share)
            rows.append((dataset, *key, factor[0], *np.percentile(factor[1:], [2.5, 97.5])))
    return pd.DataFrame(rows, columns=["dataset", "method", "fraction", "factor", "low", "high"])


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Per dataset, method and fraction: seeds (their number), each metric's mean and standard deviation (_sd)."""
    groups = results.groupby(["dataset", "method", "fraction"], sort=False)
    parts = [(groups[m].mean(), groups[m].std().rename(f"{m}_sd")) for m in METRICS if m in results]
    return pd.concat([groups.size().rename("seeds"), *sum(parts, ())], axis=1).reset_index()


def table2(results: pd.DataFrame) -> pd.DataFrame:
    """``summary`` and, where a dataset bears a genre's name (in any case), the paper's accuracy in column ``paper``."""
    ours = summary(results)
    keys = ours.assign(dataset=ours["dataset"].str.lower())[["dataset", "method", "fraction"]]
    return ours.assign(paper=keys.merge(TABLE2, how="left")["accuracy"].to_numpy())


def wide(table: pd.DataFrame, rows: Names = ("dataset", "method")) -> pd.DataFrame:
    """``table2`` (the paper's rows after ours) or a table of differences as printed: a column per fraction of Train."""
    rows, names = list(rows), dict.fromkeys(["method", "against", "of"], method_name) | {"metric": METRIC_NAMES.get}
    table = table.assign(**{column: table[column].map(names[column]) for column in rows if column in names})
    if "paper" in table:
        paper = table.assign(accuracy=table["paper"], method="paper: " + table["method"]).dropna(subset="paper")
        table = pd.concat([table, paper]).rename(columns={"accuracy": "cell"})
    else:
        table = table.assign(cell=starred(table))
    seen = table[rows].drop_duplicates()
    seen = seen.sort_values(rows[:-1], key=lambda column: pd.factorize(column)[0], kind="stable")
    found = table.pivot(index=rows, columns="fraction", values="cell").loc[pd.MultiIndex.from_frame(seen)]
    return found.set_axis([f"{100 * f:g}%" for f in found], axis=1)


def starred(table: pd.DataFrame) -> list[str]:
    """difference [low, high] of each row, with a star where there is a p_holm below 0.05."""
    star = np.where(table["p_holm"] < 0.05, "*", "") if "p_holm" in table else [""] * len(table)
    cells = zip(table["difference"], table["low"], table["high"], star, strict=True)
    return [f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]{star}" for difference, low, high, star in cells]


def format_table2(results: pd.DataFrame) -> str:
    """Table 2 as plain text: ours and the paper's rows per dataset, a column per fraction of Train."""
    table = table2(results)
    counts = " to ".join(map(str, sorted({table["seeds"].min(), table["seeds"].max()})))
    head = f"Table 2. Test accuracy, mean over {counts} seeds, by fraction of Train"
    text = wide(table).to_string(float_format="{:.3f}".format, na_rep="-", index_names=False)
    paper = "\n\npaper: Chen and Chou (2022), Table 2; their catalogues, full-size BERT."
    return f"{head}\n\n{text}{paper if table['paper'].notna().any() else ''}"


def _aligned(group: pd.DataFrame, methods: Names) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True labels (N,) and, per method, predictions (seeds, N): items and seeds in one order throughout."""
    table = group[group["method"].isin(methods)]
    table = table.pivot(index=["id", "label"], columns=["method", "seed"], values="predicted").sort_index()
    seeds = {m: sorted(seed for method, seed in table if method == m) for m in methods}
    if len(set(map(tuple, seeds.values()))) > 1 or table.isna().to_numpy().any():
        where = f"{group['dataset'].iloc[0]} at {group['fraction'].iloc[0]:.0%}"
        raise ValueError(f"{where}: methods must cover the same seeds and items, with one label each; seeds: {seeds}")
    label = np.asarray(table.index.get_level_values("label"), str)
    return label, {m: np.stack([np.asarray(table[m, s], str) for s in seeds[m]]) for m in methods}


def _resampled(
    label: np.ndarray, predicted: Mapping[str, np.ndarray], sets: sparse.csr_matrix, n: int, seed: int, recall=False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of the sample (row 0) and of ``n`` resamples of its items: accuracy, then sums of F1 (or recall) over the classes
    of each set (G, K), method -> (1 + n, S, 1 + G); and how many classes of each set have items, (1 + n, G).

    Resamples are weights on items, so counts by class are products of sparse one-hot matrices with them."""
    classes, true = np.unique(label, return_inverse=True)
    truth, matrices = _one_hot(true[None], len(classes)), {}
    for m, p in predicted.items():
        # A predicted class without true instances gets -1: it does not count, but the item is a miss.
        codes = pd.Index(classes).get_indexer(p.ravel()).reshape(p.shape)
        matrices[m] = [_one_hot(np.where(codes == true, codes, -1), len(classes)), _one_hot(codes, len(classes))]
    alive, found = [], {m: [] for m in predicted}
    rng, chunk = np.random.default_rng([seed, 0]), max(1, 2_000_000 // len(label))  # 16 MB of weights
    for start in range(-chunk, n, chunk):
        shape = (min(chunk, n - start), len(label)) if start >= 0 else (1, len(label))
        drawn = rng.integers(0, shape[1], size=shape) if start >= 0 else np.arange(shape[1])[None]
        counts = np.bincount((drawn + shape[1] * np.arange(shape[0])[:, None]).ravel(), minlength=np.prod(shape))
        items = np.ascontiguousarray(counts.reshape(shape).astype(float).T)  # (N, chunk): how often each was drawn
        support = truth @ items  # (K, chunk)
        alive.append((sets @ (support > 0)).T)
        for m, p in predicted.items():
            hits, calls = ((matrix @ items).reshape(len(p), len(classes), -1) for matrix in matrices[m])
            each = hits / np.maximum(support, 1) if recall else 2 * hits / np.maximum(support + calls, 1)
            values = [hits.sum(axis=1, keepdims=True) / len(label), np.stack([sets @ one for one in each])]
            found[m].append(np.concatenate(values, axis=1).transpose(2, 0, 1))
    return {m: np.concatenate(chunks) for m, chunks in found.items()}, np.concatenate(alive)


def _one_hot(codes: np.ndarray, classes: int) -> sparse.csr_matrix:
    """(S, N) -> (S * classes, N) with a 1 at (s * classes + codes[s, i], i); a code of -1 has none."""
    row, item = np.nonzero(codes >= 0)
    at = row * classes + codes[row, item], item
    return sparse.csr_matrix((np.ones(len(item)), at), shape=(len(codes) * classes, codes.shape[1]))


def _scored(group: pd.DataFrame, metrics: Names, n: int, seed=0, parts: HeadTail = ((), ())) -> dict[str, np.ndarray]:
    """The metrics of each method on the resamples of one dataset and fraction, (1 + n, seeds, metrics)."""
    label, predicted = _aligned(group, group["method"].unique())
    recall = all(metric.endswith("recall") for metric in metrics)
    names = [metric.replace("f1", "recall") for metric in METRICS] if recall else METRICS
    classes, chosen = np.unique(label), [names.index(metric) for metric in metrics]
    sets = sparse.csr_matrix([np.isin(classes, np.asarray(part, str)) for part in (classes, *parts)], dtype=float)
    sums, alive = _resampled(label, predicted, sets, n, seed, recall)
    counted = np.insert(np.where(alive, alive, np.nan), 0, 1, axis=1)  # accuracy is no sum over classes
    return {m: (each / counted[:, None])[..., chosen] for m, each in sums.items()}
