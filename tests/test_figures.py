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


def test_intervals_stand_in_a_panel_each_in_the_tables_order():
    changed = {"adapt.alpha": ["0.25", "0.75"], "vision.frozen": ["True"], "finetune.imbalance": ["none", "$two_stage"]}
    rows = [(s, v, m, d) for s, values in changed.items() for v in values for m, d in (("5%", 0.1), ("100%", -0.1))]
    frame = pd.DataFrame(rows, columns=["panel", "tick", "method", "value"])
    frame = frame.assign(low=frame["value"] - 0.05, high=frame["value"] + 0.05)
    fig = figures.intervals(frame, "Accuracy, difference (scale 0 to 1)", 2, "Value of the setting")
    assert fig.get_supylabel() == "Accuracy, difference (scale 0 to 1)"
    assert {ax.get_xlabel() for ax in fig.axes[:3]} == {"Value of the setting"}
    fig.canvas.draw()
    shown = fig.axes[:3]
    assert not fig.axes[3].axison
    assert [ax.get_title() for ax in shown] == list(changed)
    names = [["".join(t.get_text().split()) for t in ax.get_xticklabels()] for ax in shown]
    assert [[n.replace("two", "two_") for n in own] for own in names] == list(changed.values())
    for ax in shown:
        (five, _, _), (whole, _, _) = ax.containers
        assert set(five.get_ydata()) == {0.1}
        assert set(whole.get_ydata()) == {-0.1}
        assert all(five.get_xdata() < whole.get_xdata())  # side by side
        assert [list(line.get_ydata()) for line in ax.lines if line.get_color() == "black"] == [[0, 0]]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["5%", "100%"]


def test_a_tick_that_no_method_reaches_stays_empty():
    frame = pd.DataFrame({"panel": "p", "tick": ["ONNX: 0.7 ms", "Title: 2 ms"], "method": [None, "origin"]})
    fig = figures.intervals(frame.assign(value=[np.nan, 0.5], low=[np.nan, 0.4], high=[np.nan, 0.6]), "", columns=2)
    assert [t.get_text().replace("\n", " ") for t in fig.axes[0].get_xticklabels()] == list(frame["tick"])
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [method_name("origin")]
    assert len(fig.axes[0].lines) == 3  # the point and its ends: differences alone have a line at 0


def test_of_the_baseline_alone_there_is_an_empty_figure():
    figures.label_efficiency(pd.DataFrame()).canvas.draw()
    figures.intervals(pd.DataFrame(), "Accuracy", columns=2).canvas.draw()
