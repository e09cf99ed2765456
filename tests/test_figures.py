"""Figures: labelled, distinguishable in grey, drawn from whatever a run holds, the same bytes each time."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from icssl_lib import figures

METHODS = ["origin", "simcse", "convirt", "convirt_shuffled", "tfidf"]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def results(datasets=("beauty", "hm"), methods=METHODS, seeds=3, fractions=(0.05, 0.5, 1.0)):
    rng = np.random.default_rng(0)
    rows = [(d, m, f, s) for d in datasets for m in methods for f in fractions for s in range(seeds)]
    frame = pd.DataFrame(rows, columns=["dataset", "method", "fraction", "seed"])
    for metric in ("accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1"):
        frame[metric] = rng.random(len(frame))
    return frame


def frames(datasets=("beauty", "hm"), seeds=3):
    """What each figure function takes."""
    some = results(datasets, seeds=seeds)
    sizes = pd.concat(
        pd.DataFrame({"dataset": d, "rank": [1, 2, 3, 4], "count": [80, 15, 5, 0], "part": ["head", *["tail"] * 3]})
        for d in datasets
    )
    runs = some[["dataset", "method", "seed"]].drop_duplicates()
    steps = pd.DataFrame({"step": np.arange(150), "loss": np.linspace(2, -1, 150)})
    moves = pd.DataFrame({"measure": ["title alignment"] * 2, "when": ["before", "after"], "value": [0.5, 0.2]})
    efficiency = (
        some.groupby(["dataset", "method", "fraction"], sort=False)
        .size()
        .reset_index()[["dataset", "method", "fraction"]]
    )
    return {
        "class_sizes": sizes,
        "loss_curves": runs.merge(steps, how="cross"),
        "space": runs.merge(moves, how="cross"),
        "accuracy_curves": some,
        "figure5": some,
        "label_efficiency": efficiency.assign(factor=2.0, low=1.5, high=3.0),
    }


@pytest.mark.parametrize(("datasets", "seeds"), [(("beauty", "hm"), 3), (("hm",), 1)])
@pytest.mark.parametrize("name", list(frames()))
def test_axes_are_labelled(name, datasets, seeds):
    frame = frames(datasets, seeds)[name]
    fig = getattr(figures, name)(frame)
    fig.canvas.draw()
    rows = 2 if name == "figure5" else len(datasets) if name == "space" else 1
    assert len(fig.axes) == rows * (1 if name == "space" else len(datasets))
    assert fig.axes[0].get_ylabel()
    assert all(ax.get_title() for ax in fig.axes)
    if name != "space":
        assert all(ax.get_xlabel() for ax in fig.axes[-len(datasets) :])
    assert len(figures.caption(name, frame)) > 40


@pytest.mark.parametrize("name", ["accuracy_curves", "figure5", "loss_curves", "space"])
def test_methods_differ_without_colour(name):
    fig = getattr(figures, name)(frames()[name])
    looks = set()
    for method in METHODS:
        look = figures._look(method)
        looks.add((look["marker"], str(look["linestyle"])))
    assert len(looks) == len(METHODS)
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts == [figures.method_name(m) for m in METHODS]


def test_a_single_runs_tables():
    """Notebooks 02 and 03 draw one run: no column for what does not vary."""
    history = pd.DataFrame({"step": range(10), "epoch": 0, "loss": 1.0, "seconds": 0.0})
    figures.loss_curves(history)
    figures.space(pd.DataFrame({"measure": ["x", "x"], "when": ["before", "after"], "value": [1.0, 0.5]}))
    scores = results(("beauty",), ["origin"], seeds=1).drop(columns=["dataset", "seed"])
    figures.figure5(scores).canvas.draw()
    assert "Macro" not in figures.caption("loss_curves", history)


def test_undefined_numbers_are_left_out():
    frame = results(("hm",)).assign(tail_macro_f1=np.nan)
    figures.figure5(frame).canvas.draw()
    assert "not defined" in figures.caption("figure5", frame)
    frame.loc[frame["fraction"] == 1.0, "tail_macro_f1"] = 0.5
    figures.figure5(frame).canvas.draw()


def test_class_sizes_without_a_tail():
    sizes = pd.DataFrame({"dataset": "d", "rank": [1, 2], "count": [3, 2], "part": "head"})
    figures.class_sizes(sizes).canvas.draw()
    assert "2 of 2 classes hold 100%" in figures.caption("class_sizes", sizes)


def test_captions_say_the_numbers():
    said = figures.caption("class_sizes", frames(("hm",))["class_sizes"])
    assert "1 of 4 classes hold 80%" in said
    assert "1 of Test have none" in said
    frame = results(("hm",), ["origin", "convirt"], seeds=1).assign(accuracy=0.25)
    frame.loc[frame["method"] == "convirt", "accuracy"] = 0.5
    assert "at 5% of Train: hm: ConVIRT 0.500 (BERT (origin) 0.250)" in figures.caption("accuracy_curves", frame)
    frame.loc[frame["method"] == "convirt", "accuracy"] = 0.125  # no claim that adaptation helps
    assert "hm: BERT (origin) 0.250." in figures.caption("accuracy_curves", frame)
    said = figures.caption("label_efficiency", frames(("hm",))["label_efficiency"])
    assert "ConVIRT 2.0 (1.5 to 3.0)" in said


def test_smooth_averages_neighbouring_steps():
    history = pd.DataFrame({"step": range(8), "loss": [1, 3, 1, 3, 5, 7, 5, 7]})
    found = figures.smooth(history, points=4)
    assert found["loss"].tolist() == [2, 2, 6, 6]
    assert found["step"].tolist() == [1, 3, 5, 7]
    assert figures.smooth(history)["loss"].tolist() == history["loss"].tolist()


def test_save_writes_the_same_bytes(tmp_path):
    frame = frames()["figure5"]
    for folder in ("one", "two"):
        figures.save(figures.figure5(frame), frame, tmp_path / folder / "figure.5")
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == ["figure.5.csv", "figure.5.png", "figure.5.svg"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    svg = (tmp_path / "one" / "figure.5.svg").read_text()
    assert not re.search(r"<dc:date>", svg)
    assert pd.read_csv(tmp_path / "one" / "figure.5.csv").shape == frame.shape


def test_contact_sheet_has_a_row_per_class():
    images = np.zeros((5, 8, 8, 3), np.uint8)
    titles = ["$10 off_of {this}", "a" * 200, "word " * 40, "", "<b>"]
    fig = figures.contact_sheet(images, titles, ["x $", "x $", "x $", "y", "y"])
    fig.canvas.draw()
    assert len(fig.axes) == 2 * 3
    assert sum(len(ax.images) for ax in fig.axes) == 5
