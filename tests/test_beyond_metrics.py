"""Methods against each other: every statistic against plain loops or a case by hand, the level on a simulated null."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score
from test_metrics import table

from icssl_lib import metrics

PARTS = {"one": (["a"], ["b", "c"]), "two": (["a"], ["b", "c"])}
N = 60


def study(seed=0, datasets=("one", "two"), fractions=(0.05, 1.0), skill=None, items=40, seeds=3):
    """Predictions of methods that are right as often as ``skill`` says and call the rest at random."""
    rng = np.random.default_rng(seed)
    frames = []
    for dataset in datasets:
        label = rng.choice(list("aaabbc"), items)
        for fraction in fractions:
            by_method = {
                m: [np.where(rng.random(items) < p, label, rng.choice([*"abcd"], items)) for _ in range(seeds)]
                for m, p in (skill or {"origin": 0.3, "convirt": 0.5, "dual_late": 0.8}).items()
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


def draws(dataset, items, seeds=3, n=N, seed=0):
    """The library's draws, the sample itself first; all else below is written out."""
    own = metrics._own_seed(seed, dataset)
    which = np.random.default_rng([own, 0]).integers(0, items, size=(n, items))
    chosen = np.random.default_rng([own, 1]).integers(0, seeds, size=(n, seeds))
    return [(np.arange(items), np.arange(seeds)), *zip(which, chosen, strict=True)]


def score(metric, label, predicted):
    if metric == "accuracy":
        return np.mean(label == predicted)
    kept = sorted({"b", "c"} & set(label))
    return f1_score(label, predicted, labels=kept, average="macro", zero_division=0) if kept else np.nan


def gaps(frame, dataset, fraction, method, against, metric="accuracy"):
    label, found = arrays(frame, dataset, fraction)
    each = []
    for items, seeds in draws(dataset, len(label)):
        pairs = [(found[method][s][items], found[against][s][items]) for s in seeds]
        each.append(np.mean([score(metric, label[items], p) - score(metric, label[items], q) for p, q in pairs]))
    return np.array(each)


def only(frame, **keys):
    """The one row with these values."""
    rows = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("metric", ["accuracy", "tail_macro_f1"])
def test_compare_equals_loops(metric):
    frame = study()
    pairs = [("convirt", "origin"), ("convirt", "dual_late")]
    found = metrics.compare(frame.sample(frac=1, random_state=0), pairs, PARTS, n=N)
    assert len(found) == 3 * 2 * 2 * 2
    for method, against in pairs:
        per = [gaps(frame, d, 0.05, method, against, metric) for d in ("one", "two")]
        for dataset, gap in [("one", per[0]), ("two", per[1]), ("all", (per[0] + per[1]) / 2)]:
            row = only(found, dataset=dataset, method=method, against=against, metric=metric, fraction=0.05)
            assert row["difference"] == pytest.approx(gap[0])
            assert [row["low"], row["high"]] == pytest.approx(list(np.percentile(gap[1:], [2.5, 97.5])))
            sides = [sum(g <= 1e-12 for g in gap[1:]), sum(g >= -1e-12 for g in gap[1:])]
            assert row["p"] == pytest.approx(min(1, 2 * (1 + min(sides)) / (1 + N)))


def test_p_is_never_0_and_1_for_the_same_predictions():
    frame = study(skill={"origin": 0.0, "same": 0.0, "convirt": 1.0})
    origin = frame["method"] == "origin"
    frame.loc[frame["method"] == "same", "predicted"] = frame.loc[origin, "predicted"].to_numpy()
    found = metrics.compare(frame, [("same", "origin"), ("convirt", "origin")], PARTS, ["accuracy"], n=N)
    same, better = (found[found["method"] == m] for m in ("same", "convirt"))
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)
    assert (same["p"] == 1).all()
    assert better["p"].to_numpy() == pytest.approx(2 / (1 + N))
    assert better["p_holm"].to_numpy() == pytest.approx(4 / (1 + N))  # two fractions


def test_p_and_interval_agree():
    found = pd.concat(
        metrics.compare(study(k, skill={"origin": 0.4, "convirt": 0.5}), [("convirt", "origin")], PARTS, n=999)
        for k in range(6)
    )
    clear = (found["low"] > 0) | (found["high"] < 0)
    near = found["p"].between(0.04, 0.06)  # percentiles interpolate, counts do not
    assert (clear == (found["p"] < 0.05))[~near].all()
    assert (found["p_holm"] >= found["p"]).all()


def test_holm_by_hand():
    # Sorted: 4 x .005, 3 x .01, 2 x .03, 1 x .04, and never less than the one before.
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.5, 0.9]).tolist() == [1, 1]
    found = metrics.holm([np.nan, 0.02, 0.01])  # a test that was not made does not count
    assert math.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([0.02, 0.02])
    assert metrics.holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_by_definition(p, random):
    adjusted = metrics.holm(p)
    for k, value in enumerate(p):
        smaller = [q for q in sorted(p) if q <= value]
        steps = [(len(p) - j) * q for j, q in enumerate(smaller)]
        assert adjusted[k] == pytest.approx(min(1, max(steps)))
    order = random.sample(range(len(p)), len(p))
    assert metrics.holm([p[k] for k in order]).tolist() == pytest.approx([adjusted[k] for k in order])


def test_the_level_holds_where_nothing_differs():
    repeats, single, family = 80, [], []
    for repeat in range(repeats):
        frame = study(repeat, ("one",), (0.05, 0.5, 1.0), {"origin": 0.5, "convirt": 0.5}, items=100)
        found = metrics.compare(frame, [("convirt", "origin")], PARTS, ["accuracy"], n=99)
        alone = found[found["dataset"] == "one"]
        single += (alone["p"] < 0.05).tolist()
        family.append((alone["p_holm"] < 0.05).any())
    chance = 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert np.mean(single) < chance  # the two-way bootstrap errs on the wide side
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
    with pytest.raises(ValueError, match=r"no predictions of \['convrit'\]; found: convirt"):
        metrics.compare(frame, [("convrit", "origin")], PARTS)
    with pytest.raises(ValueError, match="a dataset is named 'all'"):
        metrics.compare(frame.assign(dataset="all"), [("convirt", "origin")], PARTS)
    assert metrics.compare(frame, [], PARTS).empty


def test_share_kept_equals_loops_and_is_a_half_half_way():
    frame = study()
    found = metrics.share_kept(frame, ["convirt"], ["dual_late"], n=N)
    assert set(found["dataset"]) == {"one", "two", "all"}
    for dataset in ("one", "all"):
        parts = ["one", "two"] if dataset == "all" else [dataset]
        gain, whole = (
            sum(gaps(frame, d, 1.0, m, "origin") for d in parts) / len(parts) for m in ("convirt", "dual_late")
        )
        row = only(found, dataset=dataset, fraction=1.0)
        assert row[["gain", "dual_gain", "share"]].tolist() == pytest.approx([gain[0], whole[0], gain[0] / whole[0]])
        ends = np.percentile(gain[1:] / whole[1:], [2.5, 97.5])
        assert row[["low", "high"]].tolist() == pytest.approx(list(ends))
    right = {"origin": 8, "convirt": 12, "dual_late": 16}  # of 20
    label = ["a"] * 20
    half = table(label, {m: [["a"] * k + ["b"] * (20 - k)] * 2 for m, k in right.items()})
    assert metrics.share_kept(half, ["convirt"], ["dual_late"], n=N)["share"].tolist() == pytest.approx([0.5, 0.5])


def test_no_share_of_a_gain_that_is_not_there():
    for dual in (0.5, 0.1):  # no better than origin, and worse
        frame = study(skill={"origin": 0.5, "convirt": 0.9, "dual_late": dual})
        found = metrics.share_kept(frame, ["convirt"], ["dual_late"], n=N)
        kept = found[found["dual_low"] <= 0]
        assert len(kept) >= 5
        assert kept[["share", "low", "high"]].isna().all(axis=None)
        assert (kept["gain"] > 0).all()
    assert metrics.share_kept(study(), ["convirt"], []).empty


def test_gain_by_class_size_equals_loops():
    frame = study()
    sizes = pd.DataFrame({"dataset": ["one"] * 3 + ["two"] * 2, "label": [*"abcab"], "count": [20, 6, 5, 7, 40]})
    found = metrics.gain_by_class_size(frame, sizes, ["convirt"], n=N)  # c of "two" is not in Train
    bins = {("one", 4, 7): "bc", ("one", 16, 31): "a", ("two", 0, 0): "c", ("two", 4, 7): "a", ("two", 32, 40): "b"}
    bins |= {("all", 4, 7): None}
    assert len(found) == 2 * (5 + 4)
    for (dataset, low, high), classes in bins.items():
        parts = {dataset: classes} if classes else {"one": "bc", "two": "a"}
        sums, counts = np.zeros(N + 1), np.zeros(N + 1)
        for d, names in parts.items():
            label, called = arrays(frame, d, 0.05)
            for k, (items, seeds) in enumerate(draws(d, len(label))):
                here = sorted(set(names) & set(label[items]))
                counts[k] += len(here)
                for s in seeds if here else ():
                    ours, theirs = (
                        recall_score(label[items], called[m][s][items], labels=here, average=None, zero_division=0)
                        for m in ("convirt", "origin")
                    )
                    sums[k] += sum(ours - theirs) / len(seeds)
        with np.errstate(invalid="ignore"):
            gap = sums / counts
        row = only(found, dataset=dataset, at_least=low, at_most=high, fraction=0.05)
        assert row["difference"] == pytest.approx(gap[0])
        assert row[["low", "high"]].tolist() == pytest.approx(list(np.nanpercentile(gap[1:], [2.5, 97.5])))
        assert row["classes"] == sum(len(names) for names in parts.values())
        assert row["items"] == sum((arrays(frame, d, 0.05)[0] == c).sum() for d, names in parts.items() for c in names)


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.sampled_from([None, 1, 2, 4, 10]))
def test_every_class_has_one_bin(counts, bins):
    edges = metrics._size_edges(np.array(counts), bins)
    assert (np.diff(edges) > 0).all()
    assert edges[0] == 0
    assert edges[-1] == max(counts) + 1
    if bins is None:
        assert {int(e) for e in edges[1:-1]} <= {2**k for k in range(12)}
        assert all(e in edges for e in (2**k for k in range(12)) if e <= max(counts))
    else:
        assert len(edges) <= bins + 1


def test_confusions_by_hand():
    label = [*"aaab"]
    frame = table(label, {"origin": [[*"bbca"], [*"bacb"]], "convirt": [[*"aaba"], [*"acab"]]}, fraction=1.0)
    # Seed 0: won a called b twice. Seed 1: won a called b, a called c; lost a called c. So a called c is even.
    # Item 2 of seed 0 is wrong on either side, and is neither.
    found = metrics.confusions(frame, "convirt", "origin", 1.0)
    assert found.to_numpy().tolist() == [["d", "won", "a", "b", 3, 0, 6]]
    back = metrics.confusions(frame, "origin", "convirt", 1.0)
    assert back.to_numpy().tolist() == [["d", "lost", "a", "b", 0, 3, 6]]
    assert metrics.confusions(frame, "origin", "origin", 1.0).empty
    assert metrics.confusions(frame, "convirt", "origin", 0.5).empty


@given(st.lists(st.tuples(*[st.sampled_from("abcd")] * 5), min_size=1, max_size=30))
def test_confusions_add_up_to_the_difference_of_accuracy(rows):
    label, *called = map(list, zip(*rows, strict=True))
    frame = table(label, {"origin": called[:2], "convirt": called[2:]})
    found = metrics.confusions(frame, "convirt", "origin", 0.05, top=None)
    hits = (frame["label"] == frame["predicted"]).groupby(frame["method"]).sum()
    assert (found["won"] - found["lost"]).sum() == hits["convirt"] - hits["origin"]
    for row in found.itertuples():
        pairs = [(t, o, c) for t, *both in rows for o, c in zip(both[:2], both[2:], strict=True)]
        assert row.won == sum(t == c == row.label and o == row.predicted for t, o, c in pairs)
        assert row.lost == sum(t == o == row.label and c == row.predicted for t, o, c in pairs)
        assert row.of == sum(t == row.label for t, *_ in pairs)
    first = metrics.confusions(frame, "convirt", "origin", 0.05, top=1)
    assert len(first) == found["change"].nunique()
    net = (found["won"] - found["lost"]).abs().groupby(found["change"]).max()
    for row in first.itertuples():
        assert abs(row.won - row.lost) == net[row.change]


def test_ablations_take_the_rows_of_each_variant():
    frame = study(skill={"origin": 0.3, "convirt": 0.5, "cooler": 0.6, "frozen": 0.2})
    pairs = [("cooler", "convirt"), ("frozen", "convirt"), ("convirt", "origin")]
    compared = metrics.compare(frame, pairs, PARTS, ["accuracy"], n=400)
    variants = [
        ("frozen", "convirt", "vision.frozen", True, False),
        ("cooler", "convirt", "adapt.temperature", 0.05, 0.1),
    ]
    found = metrics.ablations(compared, variants)
    assert len(found) == 2 * 3 * 2
    assert list(found["setting"].unique()) == ["vision.frozen", "adapt.temperature"]
    row = only(found, setting="adapt.temperature", dataset="all", fraction=1.0)
    same = only(compared, method="cooler", dataset="all", fraction=1.0)
    assert (
        row[["difference", "low", "high", "p_holm"]].tolist() == same[["difference", "low", "high", "p_holm"]].tolist()
    )
    assert row[["value", "reference", "of"]].tolist() == ["0.05", "0.1", "convirt"]
    shown = metrics.wide_compare(found[found["dataset"] == "all"], ["of", "setting", "value"])
    assert list(shown.index) == [("ConVIRT", "vision.frozen", "True"), ("ConVIRT", "adapt.temperature", "0.05")]
    assert list(shown) == ["5%", "100%"]
    assert shown.iloc[0, 0].endswith("*")
    assert metrics.ablations(metrics.compare(frame, [], PARTS), []).empty
