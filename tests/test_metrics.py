"""Metrics against hand-computed cases, the bootstrap against plain loops with scikit-learn."""

import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from icssl_lib import metrics
from icssl_lib.metrics import accuracy, macro_f1, paired_bootstrap, scores
from icssl_lib.paper import TABLE1, TABLE2

LABEL = ["a", "a", "a", "b", "b", "c"]
PREDICTED = ["a", "a", "b", "b", "c", "b"]
# a: tp 2, fp 0, fn 1 -> 4/5.   b: tp 1, fp 2, fn 1 -> 2/5.   c: tp 0, fp 1, fn 1 -> 0.


def table(label, by_method, dataset="d", fraction=0.05):
    """Predictions as the run stores them; ``by_method``: method -> one list of predictions per seed."""
    return pd.concat(
        [
            pd.DataFrame(
                {"id": [f"i{k:04d}" for k in range(len(label))], "label": label, "predicted": predicted}
            ).assign(dataset=dataset, method=method, fraction=fraction, seed=seed)
            for method, seeds in by_method.items()
            for seed, predicted in enumerate(seeds)
        ],
        ignore_index=True,
    )


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
    with pytest.raises(ValueError, match="one prediction per label"):
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


def looped(label, by_method, metric, head, tail, n, seed):
    """The two-way bootstrap by its definition; only the random draws are the library's."""
    label = np.array(label)

    def score(items, predicted):
        true, predicted = label[items], np.array(predicted)[items]
        if metric == "accuracy":
            return accuracy_score(true, predicted)
        kept = {"macro_f1": set(label), "head_macro_f1": set(head), "tail_macro_f1": set(tail)}[metric]
        kept = sorted(kept & set(true))
        return f1_score(true, predicted, labels=kept, average="macro", zero_division=0) if kept else np.nan

    size, seeds = len(label), len(by_method["origin"])
    draws = np.random.default_rng([seed, 0]).integers(0, size, size=(n, size))
    seed_draws = np.random.default_rng([seed, 1]).integers(0, seeds, size=(n, seeds))
    gaps = []
    for items, chosen in zip(draws, seed_draws, strict=True):
        each = [score(items, by_method["convirt"][s]) - score(items, by_method["origin"][s]) for s in chosen]
        gaps.append(np.mean(each))
    everything = np.arange(size)
    each = [
        score(everything, by_method["convirt"][s]) - score(everything, by_method["origin"][s]) for s in range(seeds)
    ]
    return np.mean(each), *np.nanpercentile(gaps, [2.5, 97.5])


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_bootstrap_equals_loops(metric):
    rng = np.random.default_rng(1)
    label = rng.choice(list("aaaaabbbccd"), 40)
    by_method = {m: [rng.choice([*"abcde"], 40) for _ in range(3)] for m in ("origin", "convirt")}
    by_method["convirt"] = [np.where(rng.random(40) < 0.5, label, p) for p in by_method["convirt"]]
    head, tail = ["a", "b"], ["c", "d"]
    found = paired_bootstrap(table(label, by_method), "convirt", metric=metric, n=150, seed=3, head=head, tail=tail)
    assert found == pytest.approx(looped(label, by_method, metric, head, tail, 150, 3))
    assert found.low < found.difference < found.high


def test_bootstrap_is_paired_reproducible_and_ignores_the_order_of_rows():
    rng = np.random.default_rng(2)
    label = rng.choice(list("abc"), 60)
    same = [rng.choice(list("abc"), 60) for _ in range(3)]
    frame = table(label, {"origin": same, "convirt": same, "simcse": [label] * 3})
    assert paired_bootstrap(frame, "convirt") == (0, 0, 0)  # the same mistakes cancel in each resample
    shuffled = frame.sample(frac=1, random_state=0)
    assert paired_bootstrap(shuffled, "simcse", "convirt") == paired_bootstrap(frame, "simcse", "convirt")
    assert paired_bootstrap(frame, "simcse", seed=1) != paired_bootstrap(frame, "simcse", seed=2)


def test_interval_covers_the_truth():
    # Items of random difficulty, seeds of random skill; the true gap is 0.1.
    covered, repeats = 0, 100
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        hard = rng.uniform(0, 0.4, 300)
        by_method = {
            method: [
                np.where(rng.random(300) < 0.5 + gain + hard - 0.2 + rng.normal(0, 0.01), "a", "b") for _ in range(5)
            ]
            for method, gain in (("origin", 0.0), ("convirt", 0.1))
        }
        found = paired_bootstrap(table(["a"] * 300, by_method), "convirt", n=300)
        covered += found.low <= 0.1 <= found.high
    assert covered >= 0.9 * repeats


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
    alone = paired_bootstrap(frames[3], "simcse", metric="tail_macro_f1", n=100, head=["a"], tail=["b"])
    assert tuple(row[["difference", "low", "high"]].iloc[0]) == pytest.approx(tuple(alone))
    shown = metrics.wide_differences(found)
    assert shown.shape == (8, 2)
    assert shown.index[0] == ("one", "Accuracy", "ConVIRT")


def test_undefined_tail_is_nan():
    frame = table(["a", "a"], {"origin": [["a", "b"]], "convirt": [["a", "a"]]})
    found = paired_bootstrap(frame, "convirt", metric="tail_macro_f1", head=["a"], tail=["b"], n=10)
    assert all(math.isnan(value) for value in found)


def test_bad_input_is_named():
    frame = table(list("ab"), {"origin": [list("ab")] * 2, "convirt": [list("ab")] * 2})
    with pytest.raises(ValueError, match=r"no predictions of.*simcse"):
        paired_bootstrap(frame, "simcse")
    with pytest.raises(ValueError, match=r"unknown metric.*tail_macro_f1"):
        paired_bootstrap(frame, "convirt", metric="tail_f1")
    with pytest.raises(ValueError, match="one dataset and one fraction"):
        paired_bootstrap(pd.concat([frame, frame.assign(fraction=1.0)]), "convirt")
    with pytest.raises(ValueError, match="same seeds and items"):
        paired_bootstrap(frame[(frame["method"] == "origin") | (frame["seed"] == 0)], "convirt")
    with pytest.raises(ValueError, match="same seeds and items"):
        paired_bootstrap(frame.drop(index=0), "convirt")
    with pytest.raises(ValueError, match="two true labels"):
        paired_bootstrap(pd.concat([frame.iloc[:-1], frame.iloc[-1:].assign(label="z")]), "convirt")


def test_bootstrap_is_quick():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 100, 3000).astype(str)
    by_method = {m: [rng.integers(0, 100, 3000).astype(str) for _ in range(3)] for m in ("origin", "convirt")}
    started = time.perf_counter()
    paired_bootstrap(table(label, by_method), "convirt", metric="macro_f1")
    assert time.perf_counter() - started < 10  # 0.5 s on an idle core; plain loops take minutes


def curve(method, accuracies, seeds=1, fractions=(0.1, 0.5, 1.0), dataset="d"):
    return pd.DataFrame(
        [
            {"dataset": dataset, "method": method, "fraction": f, "seed": s, "accuracy": a}
            for f, a in zip(fractions, accuracies, strict=True)
            for s in range(seeds)
        ]
    )


def efficiency(*curves):
    found = metrics.label_efficiency(pd.concat(curves), n=50)
    return found.set_index("fraction")["factor"].to_dict()


def test_label_efficiency_closed_forms():
    origin = curve("origin", [0.2, 0.4, 0.6])
    assert efficiency(origin, curve("convirt", [0.2, 0.4, 0.6])) == pytest.approx({0.1: 1, 0.5: 1, 1.0: 1})
    # 0.3 is half way from 0.1 to 0.5; 0.5 half way from 0.5 to 1; 0.7 is never reached: capped at 100%.
    assert efficiency(origin, curve("convirt", [0.3, 0.5, 0.7])) == pytest.approx({0.1: 3, 0.5: 1.5, 1.0: 1})
    assert efficiency(origin, curve("convirt", [0.9, 0.9, 0.9])) == pytest.approx({0.1: 10, 0.5: 2, 1.0: 1})
    # Worse than origin: below 1, but nothing is extrapolated below the smallest fraction.
    assert efficiency(origin, curve("simcse", [0.1, 0.3, 0.5])) == pytest.approx({0.1: 1, 0.5: 0.6, 1.0: 0.75})
    # A dip of the baseline does not count: it reached 0.4 at 0.1 already.
    dip = curve("origin", [0.4, 0.2, 0.6])
    assert efficiency(dip, curve("convirt", [0.4, 0.5, 0.6])) == pytest.approx({0.1: 1, 0.5: 1.5, 1.0: 1})


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
    assert found.loc[0, "low"] < 3 < found.loc[0, "high"]
    assert (found["method"] == "convirt").all()


def test_label_efficiency_with_items():
    rng = np.random.default_rng(0)
    label = ["a"] * 400
    frames = []
    for fraction, low, high in ((0.1, 0.2, 0.4), (1.0, 0.8, 0.8)):
        guesses = {
            m: [np.where(rng.random(400) < p, "a", "b") for _ in range(3)]
            for m, p in (("origin", low), ("convirt", high))
        }
        frames.append(table(label, guesses, fraction=fraction))
    predictions = pd.concat(frames)
    hit = predictions["label"] == predictions["predicted"]
    keys = ["dataset", "method", "fraction", "seed"]
    results = predictions.assign(accuracy=hit).groupby(keys, sort=False)["accuracy"].mean().reset_index()
    wide, narrow = (metrics.label_efficiency(results, predictions=p, n=500) for p in (predictions, None))
    assert wide["factor"].tolist() == pytest.approx(narrow["factor"].tolist())
    assert wide.loc[0, "low"] < 4 < wide.loc[0, "high"]  # 0.4 is a third of the way from 0.1 to 1


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
    assert metrics.table2(ours)["paper"].tolist() == pytest.approx([0.526, 0.618, np.nan, np.nan], nan_ok=True)
    text = metrics.format_table2(ours)
    assert "mean over 1 to 2 seeds" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["Beauty", "5%", "25%"] in lines
    assert ["BERT", "(origin)", "0.250", "0.450"] in lines
    assert ["paper:", "BERT", "(origin)", "0.526", "0.618"] in lines
    assert ["mine", "0.300", "0.500"] in lines


def test_table2_without_counterpart():
    text = metrics.format_table2(curve("origin", [0.1, 0.2, 0.3], dataset="hm"))
    assert "paper" not in text
    assert "mean over 1 seed," in text


def test_paper_tables():
    assert len(TABLE2) == 3 * 3 * 6
    assert TABLE2["accuracy"].between(0.3, 0.75).all()
    spot = TABLE2.query("dataset == 'electronics' and method == 'convirt' and fraction == 0.1")
    assert spot["accuracy"].tolist() == [0.533]
    assert TABLE1.set_index("dataset").loc["automotive"].tolist() == [200_907, 953, 9.91]
