"""Methods against each other: every statistic against plain loops or a case by hand, the level on a simulated null."""

import math
import zlib

import numpy as np
import pandas as pd
import pytest
from made_up import predictions as table
from made_up import seed_weights
from sklearn.metrics import f1_score, recall_score
from statsmodels.stats.multitest import multipletests

from icssl_lib import metrics

PARTS = {"one": (["a"], ["b", "c"]), "two": (["a"], ["b", "c"])}
N = 40


def study(seed=0, datasets=("one", "two"), fractions=(0.05, 1.0), skill=None, items=40, seeds=3):
    """Predictions of methods that are right as often as ``skill`` says and call the rest at random."""
    rng = np.random.default_rng(seed)
    frames = []
    for dataset in datasets:
        label = rng.choice(list("aaabbc"), items)
        for fraction in fractions:
            by_method = {
                m: [np.where(rng.random(items) < p, label, rng.choice([*"abcd"], items)) for _ in range(seeds)]
                for m, p in (skill or {"origin": 0.3, "convirt": 0.5, "taught_picture": 0.8}).items()
            }
            frames.append(table(label, by_method, dataset, fraction))
    return pd.concat(frames, ignore_index=True)


def arrays(frame, dataset, fraction):
    """True labels (N,), and method -> predictions (seeds, N), by pandas alone."""
    group = frame[(frame["dataset"] == dataset) & (frame["fraction"] == fraction)]
    label = group.drop_duplicates("id").set_index("id")["label"].sort_index()
    found = {}
    for method, rows in group.groupby("method"):
        found[method] = [r.set_index("id")["predicted"].loc[label.index].to_numpy() for _, r in rows.groupby("seed")]
    return label.to_numpy(), found


def draws(dataset, items, seeds=3, n=N):
    """The library's draws, the sample itself first; all else below is written out."""
    own = zlib.crc32(dataset.encode())
    which = np.random.default_rng([own, 0]).integers(0, items, size=(n, items))
    sample = (np.arange(items), [np.full(seeds, 1 / seeds)])
    return [sample, *zip(which, seed_weights(own, n, seeds), strict=True)]


def score(metric, label, predicted):
    if metric == "accuracy":
        return np.mean(label == predicted)
    kept = sorted({"b", "c"} & set(label))
    return f1_score(label, predicted, labels=kept, average="macro", zero_division=0) if kept else np.nan


def gaps(frame, dataset, fraction, method, against, metric="accuracy"):
    label, found = arrays(frame, dataset, fraction)
    each = []
    for items, weightings in draws(dataset, len(label)):
        pairs = [(p[items], q[items]) for p, q in zip(found[method], found[against], strict=True)]
        gap = [score(metric, label[items], p) - score(metric, label[items], q) for p, q in pairs]
        each += [sum(weights * gap) for weights in weightings]
    return np.array(each)


def only(frame, **keys):
    """The one row with these values."""
    rows = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("metric", ["accuracy", "tail_macro_f1"])
def test_compare_equals_loops(metric):
    frame = study()
    pairs = [("convirt", "origin"), ("convirt", "taught_picture")]
    found = metrics.compare(frame.sample(frac=1, random_state=0), pairs, PARTS, n=N)
    assert len(found) == 3 * 2 * 2 * 2
    for method, against in pairs:
        per = [gaps(frame, d, 0.05, method, against, metric) for d in ("one", "two")]
        for dataset, gap in [("one", per[0]), ("two", per[1]), ("all", (per[0] + per[1]) / 2)]:
            row = only(found, dataset=dataset, method=method, against=against, metric=metric, fraction=0.05)
            assert row["difference"] == pytest.approx(gap[0])
            assert [row["low"], row["high"]] == pytest.approx(list(np.percentile(gap[1:], [2.5, 97.5])))
            sides = [sum(g <= 1e-12 for g in gap[1:]), sum(g >= -1e-12 for g in gap[1:])]
            assert row["p"] == pytest.approx(min(1, 2 * (1 + min(sides)) / (1 + 10 * N)))


def test_p_is_never_0_and_1_for_the_same_predictions():
    frame = study(skill={"origin": 0.0, "same": 0.0, "convirt": 1.0})
    frame.loc[frame["method"] != "convirt", "predicted"] = "d"  # never right
    found = metrics.compare(frame, [("same", "origin"), ("convirt", "origin")], PARTS, ["accuracy"], n=N)
    same, better = (found[found["method"] == m] for m in ("same", "convirt"))
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)
    assert (same["p"] == 1).all()
    assert better["p"].to_numpy() == pytest.approx(2 / (1 + 10 * N))
    assert better["p_holm"].to_numpy() == pytest.approx(4 * 2 / (1 + 10 * N))  # two pairs, two fractions


def test_holm_is_over_all_cells_of_a_dataset_and_metric():
    pairs = [("convirt", "origin"), ("taught_picture", "origin"), ("taught_picture", "convirt")]
    found = metrics.compare(study(datasets=("one",)), pairs, PARTS, n=N)
    for dataset in ("one", "all"):
        for metric in metrics.COMPARED:
            cells = found[(found["dataset"] == dataset) & (found["metric"] == metric)]
            assert len(cells) == 3 * 2
            assert cells["p_holm"].tolist() == pytest.approx(multipletests(cells["p"], method="holm")[1].tolist())
    assert (found["p_holm"] > found["p"]).any()


def test_holm_by_hand():
    # Sorted: 4 x .005, 3 x .01, 2 x .03, 1 x .04, and never less than the one before.
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.5, 0.9]).tolist() == [1, 1]
    found = metrics.holm([np.nan, 0.02, 0.01])  # a test that was not made does not count
    assert math.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([0.02, 0.02])
    assert metrics.holm([]).tolist() == []


def test_the_level_holds_where_nothing_differs():
    repeats, single, family = 40, [], []
    for repeat in range(repeats):
        frame = study(repeat, ("one",), (0.05, 0.5, 1.0), {"origin": 0.5, "convirt": 0.5}, items=100)
        found = metrics.compare(frame, [("convirt", "origin")], PARTS, ["accuracy"], n=99)
        alone = found[found["dataset"] == "one"]
        single += (alone["p"] < 0.05).tolist()
        family.append((alone["p_holm"] < 0.05).any())
    chance = 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert np.mean(single) < chance  # intervals err on the wide side
    assert np.mean(family) < chance


def test_all_is_over_the_datasets_that_have_a_value():
    frame = study()
    parts = {"one": (["a"], ["b", "c"]), "two": (["a", "b", "c"], [])}  # no tail
    found = metrics.compare(frame, [("convirt", "origin")], parts, n=N)
    tail = found[(found["metric"] == "tail_macro_f1") & (found["fraction"] == 0.05)].set_index("dataset")
    assert tail.loc["two", ["difference", "low", "high", "p", "p_holm"]].isna().all()
    assert tail.loc["all", "difference"] == tail.loc["one", "difference"]
    lacking = frame[(frame["dataset"] == "one") | (frame["method"] != "convirt")]
    found = metrics.compare(lacking, [("convirt", "origin")], PARTS, ["accuracy"], n=N)
    assert list(found["dataset"].unique()) == ["one", "all"]


def test_datasets_are_resampled_independently():
    one = study(datasets=("one",), fractions=(1.0,), items=200)
    twins = pd.concat([one, one.assign(dataset="two")])
    found = metrics.compare(twins, [("convirt", "origin")], PARTS, ["accuracy"], n=500).set_index("dataset")
    width = found["high"] - found["low"]
    assert width["all"] == pytest.approx(width["one"] / math.sqrt(2), rel=0.15)  # the same draws: as wide as each
    alone = metrics.compare(one, [("convirt", "origin")], PARTS, ["accuracy"], n=500).set_index("dataset")
    assert (alone.loc["one"] == found.loc["one"]).all()  # whatever other datasets there are
    assert (alone.loc["all"] == alone.loc["one"]).all()


def test_bad_input_is_named():
    frame = study()
    with pytest.raises(ValueError, match=r"no predictions of \['convrit'\]; found: \['convirt'"):
        metrics.compare(frame, [("convrit", "origin")], PARTS)
    with pytest.raises(ValueError, match="a dataset is named 'all'"):
        metrics.compare(study(datasets=("all",)), [("convirt", "origin")], PARTS)
    assert metrics.compare(frame, [], PARTS).empty


def test_recall_of_classes_equals_loops():
    frame, parts = study(), {"one": (["b", "c"], []), "two": (["a"], [])}
    found = metrics.compare(frame, [("convirt", "origin")], parts, ["head_macro_recall"], n=N)
    per = {}
    for dataset, (names, _) in parts.items():
        label, called = arrays(frame, dataset, 0.05)

        def recall(predicted, items, label=label, names=names):
            here = sorted(set(names) & set(label[items]))
            return recall_score(label[items], predicted[items], labels=here, average="macro", zero_division=0)

        pairs, per[dataset] = list(zip(called["convirt"], called["origin"], strict=True)), []
        for items, weightings in draws(dataset, len(label)):
            gap = [recall(p, items) - recall(q, items) for p, q in pairs]
            per[dataset] += [sum(weights * gap) for weights in weightings]
    per["all"] = np.mean(list(per.values()), axis=0)
    for dataset, gap in per.items():
        row = only(found, dataset=dataset, fraction=0.05)
        assert row["difference"] == pytest.approx(gap[0])
        assert row[["low", "high"]].tolist() == pytest.approx(list(np.percentile(gap[1:], [2.5, 97.5])))
