"""Figures: labelled, distinguishable in grey, drawn from whatever a run holds, the same bytes each time."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from icssl_lib import figures, methods, style
from icssl_lib.metrics import METRICS, method_name

METHODS = ["origin", "simcse", "convirt", "convirt_shuffled", "tfidf"]
REGISTRY = list(methods.METHODS)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def cross(columns, *values):
    """A row for each combination of values."""
    return pd.MultiIndex.from_product(values, names=columns).to_frame(index=False)


def results(datasets=("beauty", "hm"), methods=METHODS, seeds=3, fractions=(0.05, 0.5, 1.0)):
    frame = cross(["dataset", "method", "fraction", "seed"], datasets, methods, fractions, range(seeds))
    drawn = np.random.default_rng(0).random((len(frame), 4))
    return frame.assign(**dict(zip(METRICS, drawn.T, strict=True)))


def frames(datasets=("beauty", "hm"), seeds=3):
    """What each figure function of the paper takes."""
    some = results(datasets, seeds=seeds)
    sizes = pd.DataFrame({"rank": [1, 2, 3, 4], "count": [80, 15, 5, 0], "part": ["head", *["tail"] * 3]})
    return {
        "class_sizes": pd.concat(sizes.assign(dataset=d) for d in datasets),
        "accuracy_curves": some,
        "figure5": some,
        "label_efficiency": some[some["seed"] == 0].assign(factor=2.0, low=1.5, high=3.0),
    }


@pytest.mark.parametrize(("datasets", "seeds"), [(("beauty", "hm"), 3), (("hm",), 1)])
@pytest.mark.parametrize("name", list(frames()))
def test_axes_are_labelled(name, datasets, seeds):
    fig = getattr(figures, name)(frames(datasets, seeds)[name])
    fig.canvas.draw()
    assert len(fig.axes) == (2 if name == "figure5" else 1) * len(datasets)
    assert fig.axes[0].get_ylabel()
    assert all(ax.get_title() for ax in fig.axes)
    assert all(ax.get_xlabel() for ax in fig.axes[-len(datasets) :])


@pytest.mark.parametrize("name", ["accuracy_curves", "figure5"])
def test_the_legend_names_every_method(name):
    fig = getattr(figures, name)(frames()[name])
    legend = fig.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [method_name(m) for m in METHODS]


def test_methods_differ_without_colour():
    looks = style.looks_of(REGISTRY)
    assert len({(look["marker"], look["fillstyle"]) for look in looks.values()}) == len(REGISTRY) > len(style.LOOKS)
    some = style.looks_of(["a", "origin", "b", "c", "convirt"])  # variants take what is left
    assert some["convirt"] == looks["convirt"]
    assert len({look["marker"] for look in some.values()}) == 5
    assert some["a"]["label"] == "a"


def test_a_single_runs_tables():
    """Notebook 03 draws one run: no column for what does not vary."""
    scores = results(("beauty",), ["origin"], seeds=1).drop(columns=["dataset", "seed"])
    figures.figure5(scores).canvas.draw()


def test_undefined_numbers_are_left_out():
    frame = results(("hm",)).assign(tail_macro_f1=np.nan)
    figures.figure5(frame).canvas.draw()
    frame.loc[frame["fraction"] == 1.0, "tail_macro_f1"] = 0.5
    figures.figure5(frame).canvas.draw()
    sizes = pd.DataFrame({"dataset": "d", "rank": [1, 2], "count": [3, 2], "part": "head"})  # no tail
    figures.class_sizes(sizes).canvas.draw()


def test_save_writes_the_same_bytes(tmp_path):
    frame = frames()["figure5"]
    for folder in ("one", "two"):
        figures.save(figures.figure5(frame), frame, tmp_path / folder / "figure.5", svg=True)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == ["figure.5.csv", "figure.5.png", "figure.5.svg"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "<dc:date>" not in (tmp_path / "one" / "figure.5.svg").read_text()
    assert pd.read_csv(tmp_path / "one" / "figure.5.csv").shape == frame.shape
    figures.save(plt.figure(), frame, tmp_path / "three" / "plain")
    assert sorted(p.name for p in (tmp_path / "three").iterdir()) == ["plain.csv", "plain.png"]


def test_contact_sheet_has_a_row_per_class():
    titles = ["$10 off_of {this}", "a" * 200, "word " * 40, "", "<b>"]
    fig = figures.contact_sheet(np.zeros((5, 8, 8, 3), np.uint8), titles, ["x $", "x $", "x $", "y", "y"])
    fig.canvas.draw()
    assert len(fig.axes) == 2 * 3
    assert sum(len(ax.images) for ax in fig.axes) == 5


@pytest.mark.parametrize("n", [6, 8, 25])
@pytest.mark.parametrize("draw", ["accuracy_curves", "figure5", "label_efficiency"])
def test_many_methods_stand_in_rows_with_a_legend_each(n, draw):
    first = [] if draw == "label_efficiency" else ["origin"]
    names = [*first, *(m for m in REGISTRY if m != "origin"), *(f"variant_{k}" for k in range(20))][:n]
    frame = results(("beauty", "hm"), names)
    if draw == "label_efficiency":
        frame = frame[frame["seed"] == 0].assign(factor=2.0, low=1.5, high=3.0)
    fig = getattr(figures, draw)(frame)
    fig.canvas.draw()
    axes = np.array(fig.axes).reshape(-1, 2)
    assert len(axes) == (2 if draw == "figure5" else 1) * -(-(n - len(first)) // 6)
    shown = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in axes[:, 1]]
    assert {name for row in shown for name in row} == {method_name(m) for m in names}
    assert all((method_name("origin") in row) == bool(first) for row in shown)
    assert len({ax.get_ylim() for ax in axes.flat}) == 1


# --- beyond the paper


def test_factors_are_arrows_to_the_baselines_curve():
    frame = cross(["dataset", "method", "fraction"], ["beauty", "hm"], ["origin", "convirt"], [0.05, 1.0])
    ahead = frame["method"] != "origin"
    frame["accuracy"] = 0.3 + 0.2 * ahead + 0.4 * frame["fraction"]
    frame["factor"] = np.where(ahead, np.where(frame["fraction"] < 1, 2.0, 1.0), np.nan)
    frame = frame.assign(accuracy_sd=0.01, low=frame["factor"] * 0.8, high=frame["factor"] * 1.5)
    fig = figures.factors(frame)
    fig.canvas.draw()
    assert [ax.get_title() for ax in fig.axes] == [f"{name}\nConVIRT: 2.0x [1.6, 3.0]" for name in ("beauty", "hm")]
    for ax in fig.axes:
        assert [text.xy for text in ax.texts] == [pytest.approx((0.1, 0.52))]
    fig = figures.factors(frame.assign(factor=frame["factor"].clip(upper=1)))
    assert not fig.axes[0].texts  # nothing to go right for
    figures.factors(frame[~ahead]).canvas.draw()


def test_gain_by_size_names_the_sizes():
    columns = ["dataset", "method", "fraction", "at_least"]
    frame = cross(columns, ["beauty", "all"], METHODS[2:4], [0.05, 1.0], [1, 2, 4])
    frame = frame.assign(at_most=frame["at_least"].map({1: 1, 2: 3, 4: 90}), classes=5)
    frame = frame.assign(difference=0.1, low=0.05, high=0.15)
    fig = figures.gain_by_size(frame)
    fig.canvas.draw()
    assert len(fig.axes) == 2  # fractions; the mean over one dataset is no panel of its own
    two = pd.concat([frame, frame[frame["dataset"] != "all"].assign(dataset="another")])
    assert len(figures.gain_by_size(two).axes) == 2 * 3
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1 (5)", "2–3 (5)", "4–90 (5)"]
    assert fig.axes[0].get_ylabel() == "5% of Train"


def test_ablation_grid_has_a_panel_per_setting_and_the_reference_at_0():
    changed = {
        "adapt.alpha": ("0.75", ["0.25", "0.5"]),
        "adapt.batch_size": ("32", ["128", "16"]),
        "vision.frozen": ("False", ["True"]),
        "finetune.imbalance": ("none", ["logit_adjusted", "$two_stage"]),
    }
    rows = [(s, v, r, "convirt", f, 0.02) for s, (r, vs) in changed.items() for v in vs for f in (0.05, 1.0)]
    frame = pd.DataFrame(rows, columns=["setting", "value", "reference", "of", "fraction", "difference"])
    fig = figures.ablation_grid(frame.assign(low=-0.03, high=0.07))
    fig.canvas.draw()
    ticks = [[t.get_text() for t in ax.get_xticklabels()] for ax in fig.axes]
    assert ticks[:2] == [["0.25", "0.5", "0.75"], ["16", "32", "128"]]  # numbers in their order
    assert ticks[3][0] == "none"  # no numbers: the study's own first
    assert [ax.get_title() for ax in fig.axes] == [f"{setting}\nConVIRT" for setting in changed]
    for ax in fig.axes:
        assert [x.get_ydata() for x in ax.lines if x.get_markerfacecolor() == "white"] == [0]
    legend = {t.get_text() for t in fig.legends[0].get_texts()}
    assert legend == {"5% of Train", "100% of Train", "the study's value"}


def test_accuracy_stands_at_its_design_in_the_order_of_costs():
    rows = [("Title", "origin", 0.5, 2.0), ("Title", "convirt", 0.6, 2.0), ("ONNX", "", np.nan, 0.7)]
    frame = pd.DataFrame(rows, columns=["design", "method", "accuracy", "p50_ms"]).assign(accuracy_sd=0.1)
    fig = figures.accuracy_cost(pd.concat([frame.assign(fraction=f) for f in (0.05, 1.0)]))
    fig.canvas.draw()
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["ONNX: 0.7 ms", "Title: 2 ms"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [method_name(m) for m in ("origin", "convirt")]


@pytest.mark.parametrize("draw", ["label_efficiency", "gain_by_size", "ablation_grid"])
def test_of_the_baseline_alone_there_is_an_empty_figure(draw):
    getattr(figures, draw)(pd.DataFrame()).canvas.draw()
