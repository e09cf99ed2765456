"""Metrics against hand-computed cases, the bootstrap against plain loops with scikit-learn."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import predictions as table
from made_up import seed_weights
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from icssl_lib import metrics
from icssl_lib.metrics import accuracy, macro_f1, scores

LABEL = ["a", "a", "a", "b", "b", "c"]
PREDICTED = ["a", "a", "b", "b", "c", "b"]
# a: tp 2, fp 0, fn 1 -> 4/5.   b: tp 1, fp 2, fn 1 -> 2/5.   c: tp 0, fp 1, fn 1 -> 0.


def test_hand_computed():
    assert accuracy(LABEL, PREDICTED) == pytest.approx(3 / 6)
    assert macro_f1(LABEL, PREDICTED) == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)
    found = scores(LABEL, PREDICTED, head=["a"], tail=["b", "c"])
    assert found == pytest.approx(
        {"accuracy": 1 / 2, "macro_f1": 2 / 5, "head_macro_f1": 4 / 5, "tail_macro_f1": 1 / 5}
    )


def test_a_class_absent_from_train_counts_as_zero_in_the_tail():
    # c stands in Test only: no classifier can name it, and its item is a false positive of a.
    found = scores(["a", "a", "b", "c"], ["a", "a", "b", "a"], head=["a"], tail=["b", "c"])
    assert found["tail_macro_f1"] == pytest.approx((1 + 0) / 2)
    assert found["head_macro_f1"] == pytest.approx(4 / 5)


def test_classes_without_true_instances_do_not_count():
    assert macro_f1(["a", "a"], ["a", "z"]) == pytest.approx(2 / 3)  # z is predicted, never true
    assert macro_f1(["a", "a"], ["a", "z"], labels=["a", "z", "never"]) == pytest.approx(2 / 3)
    assert math.isnan(macro_f1(["a"], ["a"], labels=["b"]))
    assert math.isnan(macro_f1([], []))
    assert math.isnan(accuracy([], []))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        accuracy(["a"], ["a", "b"])


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=30))
def test_macro_f1_by_definition(pairs):
    label, predicted = zip(*pairs, strict=True)
    each = []
    for c in sorted(set(label)):
        tp = sum(t == c and p == c for t, p in pairs)
        wrong = sum((t == c) != (p == c) for t, p in pairs)
        each.append(2 * tp / (2 * tp + wrong))
    assert macro_f1(label, predicted) == pytest.approx(sum(each) / len(each))


def interval(frame, method, baseline="origin", metric="accuracy", n=2000, parts=((), ())):
    """Of one dataset and fraction, with the draws that all datasets share."""
    of = dict.fromkeys(frame["dataset"], parts)
    (gap,) = metrics.paired_bootstrap(frame, [(method, baseline)], of, [metric], n, over_all=False).values()
    return metrics.interval(gap)


def looped(label, by_method, metric, head, tail, n):
    """Items resampled, seeds weighted, by definition; only the random draws are the library's."""
    label = np.array(label)
    counted = {"macro_f1": set(label), "head_macro_f1": set(head), "tail_macro_f1": set(tail)}

    def score(items, predicted):
        true, predicted = label[items], np.array(predicted)[items]
        if metric == "accuracy":
            return accuracy_score(true, predicted)
        kept = sorted(counted[metric] & set(true))
        return f1_score(true, predicted, labels=kept, average="macro", zero_division=0) if kept else np.nan

    size, seeds = len(label), len(by_method["origin"])
    items = [np.arange(size), *np.random.default_rng([0, 0]).integers(0, size, size=(n, size))]
    gaps = []
    for i, weightings in zip(items, [[np.full(seeds, 1 / seeds)], *seed_weights(0, n, seeds)], strict=True):
        each = [score(i, by_method["convirt"][s]) - score(i, by_method["origin"][s]) for s in range(seeds)]
        gaps += [sum(weights * each) for weights in weightings]
    return gaps[0], *np.nanpercentile(gaps[1:], [2.5, 97.5])


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_bootstrap_equals_loops(metric):
    rng = np.random.default_rng(1)
    label = rng.choice(list("aaaaabbbccd"), 40)
    by_method = {m: [rng.choice([*"abcde"], 40) for _ in range(3)] for m in ("origin", "convirt")}
    by_method["convirt"] = [np.where(rng.random(40) < 0.5, label, p) for p in by_method["convirt"]]
    head, tail = ["a", "b"], ["c", "d"]
    found = interval(table(label, by_method), "convirt", metric=metric, n=80, parts=(head, tail))
    assert found[:3] == pytest.approx(looped(label, by_method, metric, head, tail, 80))
    assert found.low < found.difference < found.high


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_mean_over_seeds_has_an_error_of_students_t(seeds):
    values = np.random.default_rng(seeds).normal(size=seeds)
    drawn = metrics.seed_means(np.tile(values[:, None], (2001, 1, 1)))[:, 0]
    t = (drawn[1:] - values.mean()) / (values.std(ddof=1) / math.sqrt(seeds))
    assert drawn[0] == pytest.approx(values.mean())
    assert len(t) == 20_000
    assert stats.kstest(t, "t", (seeds - 1,)).pvalue > 0.01
    assert stats.kstest(t, "norm").pvalue < 0.01


def test_one_seed_leaves_the_resamples_of_items_alone():
    values = np.random.default_rng(0).normal(size=(5, 1, 2))
    assert (
        metrics.seed_means(values) == np.concatenate([values[0], *[each.repeat(10, 0) for each in values[1:]]])
    ).all()


def test_intervals_of_three_seeds_cover():
    """Where seeds are all the chance there is: ours by Student's t, and those of resampled seeds, of which 27 exist."""
    values = np.random.default_rng(0).normal(size=(3, 2000))  # about 0
    drawn = metrics.seed_means(np.tile(values, (201, 1, 1)))
    ours = [metrics.interval(each) for each in drawn.T]
    low, high = np.percentile(
        [values[[*s]].mean(axis=0) for s in itertools.product(range(3), repeat=3)], [2.5, 97.5], 0
    )
    assert 0.93 <= np.mean([each.low < 0 < each.high for each in ours]) < 0.97
    assert np.mean((low < 0) & (high > 0)) < 0.8  # at most 1 - 2 / 2^3
    assert 0.03 < np.mean([each.p < 0.05 for each in ours]) <= 0.07


def test_bootstrap_is_paired_reproducible_and_ignores_the_order_of_rows():
    rng = np.random.default_rng(2)
    label = rng.choice(list("abc"), 60)
    same = [rng.choice(list("abc"), 60) for _ in range(3)]
    frame = table(label, {"origin": same, "convirt": same, "simcse": [label] * 3})
    assert interval(frame, "convirt") == (0, 0, 0, 1)  # the same mistakes cancel in each resample
    shuffled = frame.sample(frac=1, random_state=0)
    assert interval(shuffled, "simcse", "convirt") == interval(frame, "simcse", "convirt")


def test_differences_equal_single_intervals():
    rng = np.random.default_rng(4)
    label = rng.choice(list("aaab"), 50)
    frames = []
    for dataset in ("one", "two"):
        for fraction in (0.05, 1.0):
            by_method = {m: [rng.choice(list("ab"), 50) for _ in range(2)] for m in ("origin", "convirt", "simcse")}
            frames.append(table(label, by_method, dataset, fraction))
    frame = pd.concat(frames)
    found = metrics.differences(frame, {"one": (["a"], ["b"]), "two": (["a"], ["b"])}, n=100)
    assert len(found) == 2 * 2 * 2 * 2
    row = found.query("dataset == 'two' and fraction == 1 and method == 'simcse' and metric == 'tail_macro_f1'")
    alone = interval(frames[3], "simcse", metric="tail_macro_f1", n=100, parts=(["a"], ["b"]))
    assert tuple(row[["difference", "low", "high"]].iloc[0]) == pytest.approx(tuple(alone[:3]))
    shown = metrics.wide(found, ["dataset", "metric", "method"])
    assert shown.shape == (8, 2)
    assert shown.index[0] == ("one", "Accuracy", "ConVIRT")


def test_undefined_tail_is_nan():
    frame = table(["a", "a"], {"origin": [["a", "b"]], "convirt": [["a", "a"]]})
    found = interval(frame, "convirt", metric="tail_macro_f1", parts=(["a"], ["b"]), n=10)
    assert all(math.isnan(value) for value in found)


def test_bad_input_is_named():
    frame = table(list("ab"), {"origin": [list("ab")] * 2, "convirt": [list("ab")] * 2})
    with pytest.raises(ValueError, match=r"no predictions of.*simcse"):
        interval(frame, "simcse")
    with pytest.raises(ValueError, match="'tail_f1' is not in list"):
        interval(frame, "convirt", metric="tail_f1")
    with pytest.raises(ValueError, match="too many"):
        interval(pd.concat([frame, frame.assign(fraction=1.0)]), "convirt")
    with pytest.raises(ValueError, match="same seeds and items"):
        interval(frame[(frame["method"] == "origin") | (frame["seed"] == 0)], "convirt")
    with pytest.raises(ValueError, match="same seeds and items"):
        interval(frame.drop(index=0), "convirt")
    with pytest.raises(ValueError, match="same seeds and items, with one label each"):
        interval(pd.concat([frame.iloc[:-1], frame.iloc[-1:].assign(label="z")]), "convirt")


def curve(method, accuracies, seeds=1, fractions=(0.1, 0.5, 1.0), dataset="d"):
    return pd.DataFrame(
        [
            {"dataset": dataset, "method": method, "fraction": f, "seed": s, "accuracy": a}
            for f, a in zip(fractions, accuracies, strict=True)
            for s in range(seeds)
        ]
    )


def efficiency(*curves, **keys):
    found = metrics.label_efficiency(pd.concat(curves), **keys, n=50)
    return found.set_index("fraction")["factor"].to_dict()


def test_label_efficiency_closed_forms():
    origin = curve("origin", [0.2, 0.4, 0.6])
    assert efficiency(origin, curve("convirt", [0.2, 0.4, 0.6])) == pytest.approx({0.1: 1, 0.5: 1, 1.0: 1})
    # By the logarithm: 0.3 is half way from 0.1 to 0.5, 0.5 half way from 0.5 to 1. 0.7 is never reached: 100% counts.
    ahead = curve("convirt", [0.3, 0.5, 0.7])
    assert efficiency(origin, ahead) == pytest.approx({0.1: math.sqrt(5), 0.5: math.sqrt(2), 1.0: 1})
    assert efficiency(origin, curve("convirt", [0.9, 0.9, 0.9])) == pytest.approx({0.1: 10, 0.5: 2, 1.0: 1})
    # Worse than origin: below 1, but nothing is extrapolated below the smallest fraction.
    behind = curve("simcse", [0.1, 0.3, 0.5])
    assert efficiency(origin, behind) == pytest.approx({0.1: 1, 0.5: 1 / math.sqrt(5), 1.0: 1 / math.sqrt(2)})
    # A dip of the baseline does not count: it reached 0.4 at 0.1 already.
    dip = curve("origin", [0.4, 0.2, 0.6])
    level = curve("convirt", [0.4, 0.5, 0.6])
    assert efficiency(dip, level) == pytest.approx({0.1: 1, 0.5: math.sqrt(2), 1.0: 1})
    # Half way from 5% to 50% is 15.8%.
    both = (curve(m, a, fractions=(0.05, 0.5)) for m, a in (("origin", [0.2, 0.6]), ("convirt", [0.4, 0.6])))
    assert efficiency(*both)[0.05] * 0.05 == pytest.approx(0.158, abs=5e-4)


def test_label_efficiency_against_another_baseline():
    origin, names = curve("origin", [0.2, 0.4, 0.6]), curve("origin_names", [0.3, 0.5, 0.6])
    convirt = curve("convirt", [0.4, 0.6, 0.7])
    found = efficiency(names, convirt, baseline="origin_names")
    assert found == pytest.approx({0.1: math.sqrt(5), 0.5: 2, 1.0: 1})
    assert found == pytest.approx(efficiency(names.assign(method="origin"), convirt))
    rows = metrics.label_efficiency(pd.concat([origin, names, convirt]), "origin_names", n=50)
    assert list(rows["method"].unique()) == ["origin", "convirt"]
    assert rows.query("method == 'origin'")["factor"].tolist() == pytest.approx([1, 1 / math.sqrt(5), 1])


def test_label_efficiency_equals_loops():
    rng, methods, fractions = np.random.default_rng(3), ("origin", "convirt"), [0.05, 0.1, 0.25, 0.5, 1.0]
    frame = pd.concat([curve(m, rng.random(5), 3, fractions) for m in methods])
    frame["accuracy"] += rng.normal(scale=0.2, size=len(frame))  # curves dip and cross, and some goals are not reached
    found, drawn = metrics.label_efficiency(frame, n=30), {}
    for key, rows in frame.groupby(["method", "fraction"]):
        drawn[key] = metrics.seed_means(np.tile(rows["accuracy"].to_numpy()[:, None], (31, 1, 1)))[:, 0]
    for row in found.itertuples():
        factors = []
        for draw in range(301):
            reached = np.maximum.accumulate([drawn["origin", f][draw] for f in fractions])
            goal = drawn["convirt", row.fraction][draw]  # interpolated from the right: of equal points the first counts
            factors.append(math.exp(np.interp(-goal, -reached[::-1], np.log(fractions)[::-1])) / row.fraction)
        expected = [factors[0], *np.percentile(factors[1:], [2.5, 97.5])]
        assert [row.factor, row.low, row.high] == pytest.approx(expected)


def test_label_efficiency_wants_a_curve():
    both = pd.concat([curve("origin", [0.2, 0.4, 0.8]), curve("convirt", [0.4, 0.6, 0.8])])
    gap = sorted(both["fraction"].unique())
    apart = max(b / a for a, b in itertools.pairwise(gap))
    assert len(metrics.label_efficiency(both, n=20, widest=apart)) == 3
    assert metrics.label_efficiency(both, n=20, widest=0.9 * apart).empty
    assert metrics.label_efficiency(both[both["fraction"] == gap[0]], n=20, widest=3).empty  # one fraction is no curve


def test_label_efficiency_intervals():
    origin, convirt = curve("origin", [0.2, 0.4, 0.6], seeds=3), curve("convirt", [0.3, 0.5, 0.7], seeds=3)
    found = metrics.label_efficiency(pd.concat([origin, convirt]), n=50)
    assert found["low"].tolist() == pytest.approx(found["factor"].tolist())  # equal seeds: no width
    convirt["accuracy"] += convirt["seed"].map({0: -0.05, 1: 0, 2: 0.05})
    found = metrics.label_efficiency(pd.concat([origin, convirt]), n=200)
    assert found.loc[0, "low"] < math.sqrt(5) < found.loc[0, "high"]
    assert (found["method"] == "convirt").all()


def test_label_efficiency_with_items():
    rng, frames = np.random.default_rng(0), []
    for fraction, skills in ((0.1, {"origin": 0.2, "convirt": 0.4}), (1.0, {"origin": 0.8, "convirt": 0.8})):
        guesses = {m: [np.where(rng.random(400) < p, "a", "b") for _ in range(3)] for m, p in skills.items()}
        frames.append(table(["a"] * 400, guesses, fraction=fraction))
    predictions = pd.concat(frames)
    hit = predictions.assign(accuracy=predictions["label"] == predictions["predicted"])
    results = hit.groupby(["dataset", "method", "fraction", "seed"], sort=False)["accuracy"].mean().reset_index()
    wide, narrow = (metrics.label_efficiency(runs, n=500) for runs in (predictions, results))
    assert wide["factor"].tolist() == pytest.approx(narrow["factor"].tolist())
    assert wide.loc[0, "low"] < 10 ** (1 / 3) < wide.loc[0, "high"]  # 0.4 is a third of the way from 0.1 to 1


def test_label_efficiency_needs_the_baseline():
    with pytest.raises(ValueError, match="no results of the baseline 'origin'"):
        metrics.label_efficiency(curve("convirt", [0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="different seeds"):
        metrics.label_efficiency(pd.concat([curve("origin", [0.1] * 3, 2), curve("convirt", [0.1] * 3, 3)]))


def test_summary_and_table2():
    ours = curve("origin", [0.2, 0.4], seeds=2, fractions=(0.05, 0.25), dataset="Beauty")
    ours["accuracy"] += ours["seed"] * 0.1
    ours = pd.concat([ours, curve("mine", [0.3, 0.5], fractions=(0.05, 0.25), dataset="Beauty")])
    found = metrics.summary(ours)
    assert found["accuracy"].tolist() == pytest.approx([0.25, 0.45, 0.3, 0.5])
    assert found["accuracy_sd"].tolist() == pytest.approx([0.1 / math.sqrt(2)] * 2 + [np.nan] * 2, nan_ok=True)
    assert "paper" not in metrics.format_table2(ours.assign(dataset="hm"))
    assert metrics.table2(ours)["paper"].tolist() == pytest.approx([0.526, 0.618, np.nan, np.nan], nan_ok=True)
    text = metrics.format_table2(ours)
    assert "mean over 1 to 2 seeds" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["5%", "25%"] in lines
    assert ["Beauty", "BERT", "(origin)", "0.250", "0.450"] in lines
    assert ["paper:", "BERT", "(origin)", "0.526", "0.618"] in lines
    assert ["mine", "0.300", "0.500"] in lines
