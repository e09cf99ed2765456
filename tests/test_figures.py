"""Figures: labelled, distinguishable in grey, drawn from whatever a run holds, the same bytes each time."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from icssl_lib import figures, methods

METHODS = ["origin", "simcse", "convirt", "convirt_shuffled", "tfidf"]
REGISTRY = list(methods.METHODS)


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
    for method in REGISTRY:
        look = figures._look(method)
        looks.add((look["marker"], str(look["linestyle"])))
    assert len(looks) == len(REGISTRY) > len(figures._LOOKS)
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


# --- the explorer's figures


def map_frame(n=400, views=("origin", "convirt seed 0"), shift=0.0):
    """Two groups of products; in the later views all products lie ``shift`` to the right."""
    rng = np.random.default_rng(0)
    label = np.array(["mug $", "lamp"])[np.arange(n) % 2]
    x = 10 * (label == "lamp") + rng.normal(size=n)
    rows = pd.DataFrame({"position": range(n), "id": "p", "label": label, "x": x, "y": rng.normal(size=n)})
    return pd.concat([rows.assign(view=view, x=rows["x"] + shift * i) for i, view in enumerate(views)])


def neighbour_frame():
    rows = []
    for query in (7, 3):
        for view, labels in (("origin", "xyx"), ("convirt seed 1", "xxx")):
            rows += [(query, view, r, f"{label}$ title", label, 0.9) for r, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=["query", "view", "rank", "title", "label", "similarity"])


def measure_frame(seeds=3, datasets=("beauty", "hm")):
    names = ["label agreement", "anisotropy"]
    rows = [(d, m, n, p) for d in datasets for m in METHODS[:3] for n in names for p in ("all", "head", "tail")]
    frame = pd.DataFrame(rows, columns=["dataset", "method", "measure", "part"])
    half = 0.1 if seeds > 1 else np.nan
    return frame.assign(seeds=seeds, value=0.5, low=0.5 - half, high=0.5 + half)


def recall_frame(datasets=("beauty", "hm"), half=0.05):
    rows = [
        (d, m, way, k, r, r - half, r + half, k / 400)
        for d in datasets
        for m, r in (("convirt", 0.3), ("convirt_shuffled", 0.01))
        for way in ("title to picture", "picture to title")
        for k in (1, 5, 10)
    ]
    return pd.DataFrame(rows, columns=["dataset", "method", "direction", "k", "recall", "low", "high", "chance"])


def test_maps_share_their_axes_and_lay_pictures_where_the_products_are():
    frame = map_frame()
    fig = figures.maps(frame, np.zeros((2, 8, 8, 3), np.uint8), [5, 9])
    fig.canvas.draw()
    one, two = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["BERT (origin)", "ConVIRT, seed 0"]
    assert one.get_xlim() == two.get_xlim()
    assert one.get_ylim() == two.get_ylim()
    assert np.ptp(one.get_xlim()) == pytest.approx(np.ptp(one.get_ylim()))
    boxes = [a for a in one.artists if hasattr(a, "xybox")]
    assert [tuple(b.xy) for b in boxes] == [tuple(frame.iloc[i][["x", "y"]]) for i in (5, 9)]
    drawn = sum(len(c.get_offsets()) for c in one.collections)
    assert drawn == 400


def test_classes_on_a_map_differ_by_marker_and_the_rest_is_grey():
    frame = map_frame(600).assign(label=lambda f: "c" + (f["position"] % 12).astype(str))
    fig = figures.maps(frame)
    handles = fig.legends[0].legend_handles
    assert [h.get_label() for h in handles] == [*[f"c{i}" for i in (0, 1, 10, 11, 2, 3, 4, 5)], "other classes"]
    assert len({h.get_marker() for h in handles}) == len(handles)
    fig = figures.maps(frame.assign(label=""))
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["products"]
    assert "label" not in figures.caption("maps", frame.assign(label=""))


def test_the_caption_of_maps_says_what_moved():
    assert "half of the products move farther than 0% of" in figures.caption("maps", map_frame())
    said = figures.caption("maps", map_frame())
    assert "BERT (origin): 100%; ConVIRT, seed 0: 100%" in said
    frame = map_frame(shift=30.0)
    ends = frame[["x", "y"]].quantile([0.01, 0.99]).to_numpy()
    share = 30 / np.linalg.norm(ends[1] - ends[0])
    assert f"farther than {share:.0%} of" in figures.caption("maps", frame)


def test_neighbours_of_the_products_class_have_a_thick_frame():
    frame = neighbour_frame()
    fig = figures.neighbour_pictures(frame, np.zeros((len(frame), 8, 8, 3), np.uint8))
    fig.canvas.draw()
    grid = np.array(fig.axes).reshape(2, 7)  # the product; gap and two neighbours, twice
    shown = np.array([[len(ax.images) for ax in row] for row in grid])
    assert (shown == [1, 0, 1, 1, 0, 1, 1]).all()
    thick = np.array([[ax.spines["left"].get_linewidth() > 2 for ax in row] for row in grid]) & (shown == 1)
    assert (thick == [False, False, False, True, False, True, True]).all()
    said = figures.caption("neighbour_pictures", frame)
    assert "The 2 nearest titles of 2 products" in said
    assert "BERT (origin): 50%; ConVIRT, seed 1: 100%" in said


@pytest.mark.parametrize("seeds", [1, 3])
def test_measures_have_a_panel_each_and_say_which_way_is_good(seeds):
    frame = measure_frame(seeds)
    fig = figures.measures(frame)
    fig.canvas.draw()
    assert [ax.get_title() for ax in fig.axes] == 2 * [
        "anisotropy\n(lower is better)",
        "label agreement\n(higher is better)",
    ]
    assert [t.get_text() for t in fig.axes[-1].get_xticklabels()] == ["all", "head", "tail"]
    said = figures.caption("measures", frame)
    assert "label agreement: BERT (origin) 0.5, SimCSE 0.5, ConVIRT 0.5" in said
    assert ("95% intervals" in said) == (seeds > 1)


def test_the_measures_that_are_explained_have_a_direction():
    from icssl_lib.explore import MEASURES

    assert list(MEASURES) == list(figures._BETTER)
    for name, text in MEASURES.items():
        assert f"{figures._BETTER[name].capitalize()} " in text


@pytest.mark.parametrize("half", [0.05, np.nan])
def test_recall_stands_beside_chance(half):
    frame = recall_frame(half=half)
    fig = figures.recall(frame)
    fig.canvas.draw()
    assert len(fig.axes) == 4
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1", "5", "10"]
    lines = next(c for c in fig.axes[0].collections if c.get_label() == "chance").get_segments()
    assert [segment[0][1] for segment in lines] == pytest.approx([1 / 400, 5 / 400, 10 / 400])
    assert fig.axes[0].get_ylim()[0] == 0
    assert fig.axes[0].get_ylim()[1] > 0.3
    said = figures.caption("recall", frame)
    assert "among the 10 nearest" in said
    assert (
        "beauty: ConVIRT 30.0% and 30.0%, ConVIRT, shuffled pairs (control) 1.0% and 1.0% (chance 2.5% and 2.5%)"
        in said
    )


def test_label_efficiency_of_the_baseline_alone_says_that_nothing_is_compared():
    nothing = pd.DataFrame(columns=["dataset", "method", "fraction", "factor", "low", "high"])
    fig = figures.label_efficiency(nothing)
    assert [ax.get_title() for ax in fig.axes] == ["nothing to compare, or too few fractions"]
    assert "nan" not in figures.caption("label_efficiency", nothing)
    plt.close(fig)


# --- beyond the paper


def factor_frame(factor=2.0, methods=("origin", "convirt")):
    rows = [
        (d, m, f, 0.3 + 0.2 * (m != "origin") + 0.4 * f) for d in ("beauty", "hm") for m in methods for f in (0.05, 1.0)
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "method", "fraction", "accuracy"])
    frame["factor"] = np.where(frame["method"] == "origin", np.nan, np.where(frame["fraction"] < 1, factor, 1))
    return frame.assign(low=frame["factor"] * 0.8, high=frame["factor"] * 1.5)


def size_frame():
    bins = [(0, 0), (1, 1), (2, 3), (4, 90)]
    rows = [
        (d, m, f, *b, 5, 0.1, 0.05, 0.15)
        for d in ("beauty", "all")
        for m in METHODS[2:4]
        for f in (0.05, 1.0)
        for b in bins
        if d == "all" or b[0]
    ]
    columns = ["dataset", "method", "fraction", "at_least", "at_most", "classes", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def ablation_frame():
    changed = [
        ("adapt.alpha", "0.75", ["0.25", "0.5"]),
        ("adapt.temperature", "0.1", ["0.01", "1.0"]),
        ("vision.frozen", "False", ["True"]),
        ("finetune.imbalance", "none", ["logit_adjusted", "$two_stage"]),
    ]
    rows = [(s, v, r, "convirt", f, 0.02 if f < 1 else -0.1) for s, r, vs in changed for v in vs for f in (0.05, 1.0)]
    frame = pd.DataFrame(rows, columns=["setting", "value", "reference", "of", "fraction", "difference"])
    return frame.assign(low=frame["difference"] - 0.05, high=frame["difference"] + 0.05)


def confusion_frame():
    rows = [("beauty", "won", "$mug_", "lamp", 9, 1, 30), ("beauty", "lost", "lamp", "rug " * 20, 0, 2, 30)]
    rows.append(("hm", "lost", "a", "b", 0, 1, 3))
    return pd.DataFrame(rows, columns=["dataset", "change", "label", "predicted", "won", "lost", "of"])


@pytest.mark.parametrize("n", [7, 8, 14, 25])
@pytest.mark.parametrize("draw", ["accuracy_curves", "figure5", "label_efficiency"])
def test_many_methods_stand_in_rows_with_a_legend_each(n, draw):
    names = (["origin"] if draw != "label_efficiency" else []) + [m for m in REGISTRY if m != "origin"]
    names = [*names, *(f"variant_{k}" for k in range(20))][:n]
    frame = results(("beauty", "hm"), names)
    if draw == "label_efficiency":
        frame = frame[frame["seed"] == 0].assign(factor=2.0, low=1.5, high=3.0)
    fig = getattr(figures, draw)(frame)
    fig.canvas.draw()
    axes = np.array(fig.axes).reshape(-1, 2)
    legends = fig.legends if n <= 7 else [ax.get_legend() for ax in axes[:, 1]]
    assert len(axes) == (2 if draw == "figure5" else 1) * (
        1 if n <= 7 else -(-(n - ("origin" in names)) // (7 - ("origin" in names)))
    )
    shown = [[t.get_text() for t in legend.get_texts()] for legend in legends]
    assert {name for row in shown for name in row} >= {figures.method_name(m) for m in names}
    assert max(map(len, shown)) <= 8  # a look each, and the cap
    assert all(figures.method_name("origin") in row for row in shown) == ("origin" in names)
    for row in figures._in_rows(names):
        looks = [figures._looks(row)[m] for m in row]
        assert len({(x["marker"], str(x["linestyle"]), x.get("markerfacecolor")) for x in looks}) == len(row)
    limits = [{ax.get_ylim() for ax in part.flat} for part in np.split(axes, 2 if draw == "figure5" else 1)]
    assert all(len(part) == 1 for part in limits)


def test_variants_take_looks_that_are_left():
    looks = figures._looks(["a", "origin", "b", "c", "convirt"])
    assert looks["convirt"] == figures._look("convirt")
    assert len({look["marker"] for look in looks.values()}) == 5
    assert looks["a"]["label"] == "a"


def test_factors_are_arrows_to_the_baselines_curve():
    frame = factor_frame()
    fig = figures.factors(frame)
    fig.canvas.draw()
    for ax in fig.axes:
        arrows = [t for t in ax.texts if t.arrow_patch]
        assert [t.xy for t in arrows] == [pytest.approx((0.1, 0.52))]
        assert [t.get_text() for t in ax.texts if not t.arrow_patch] == ["2.0x [1.6, 3.0]"]
    said = figures.caption("factors", frame)
    assert "ConVIRT: 2.0 [1.6, 3.0] in beauty, 2.0 [1.6, 3.0] in hm" in said
    assert "lower bound" not in said
    high = frame.assign(accuracy=frame["accuracy"] + 0.5 * (frame["method"] == "convirt"))
    assert "the factor is a lower bound: ConVIRT in beauty, ConVIRT in hm" in figures.caption("factors", high)
    three = figures.factors(factor_frame(1.0, ["origin", "simcse", "convirt"]))
    texts = three.axes[0].texts
    assert not any(t.arrow_patch for t in texts)  # nothing to go right for
    assert len({round(t.xy[1], 3) for t in texts}) == 2  # equally accurate, and still one under the other
    alone = frame[frame["method"] == "origin"]
    figures.factors(alone).canvas.draw()
    assert "only the baseline" in figures.caption("factors", alone)


def test_gain_by_size_names_the_sizes():
    frame = size_frame()
    fig = figures.gain_by_size(frame)
    fig.canvas.draw()
    assert len(fig.axes) == 2  # fractions; the mean over one dataset is no panel of its own
    two = pd.concat([frame, frame[frame["dataset"] != "all"].assign(dataset="another")])
    assert len(figures.gain_by_size(two).axes) == 2 * 3
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1\n(5)", "2–3\n(5)", "4–90\n(5)"]
    assert fig.axes[0].get_ylabel().startswith("5% of Train")
    said = figures.caption("gain_by_size", frame)
    assert "+0.100 [+0.050, +0.150] for classes of 0 and" in said
    assert "of 4 sizes 4 gain and 0 lose" in said
    figures.gain_by_size(frame[:0]).canvas.draw()
    assert "no gain" in figures.caption("gain_by_size", frame[:0])


def test_ablation_grid_has_a_panel_per_setting_and_the_reference_at_0():
    frame = ablation_frame()
    fig = figures.ablation_grid(frame)
    fig.canvas.draw()
    ticks = {ax.get_title(): [t.get_text() for t in ax.get_xticklabels()] for ax in fig.axes if ax.axison}
    assert ticks["adapt.alpha\nConVIRT"] == ["0.25", "0.5", "0.75"]  # numbers in their order
    assert ticks["adapt.temperature\nConVIRT"] == ["0.01", "0.1", "1.0"]
    assert ticks["finetune.imbalance\nConVIRT"][0] == "none"  # no numbers: the study's own first
    assert [ax.get_xlabel() for ax in fig.axes] == ["value", "value (log)", "value", "value"]
    assert np.diff(fig.axes[1].get_xticks()) == pytest.approx([1, 1])  # a decade each
    for ax in fig.axes:
        hollow = [x for x in ax.lines if x.get_markerfacecolor() == "white"]
        assert [x.get_ydata() for x in hollow] == [0]
    legend = [t.get_text() for t in fig.legends[0].get_texts()]
    assert sorted(legend) == sorted(["5% of Train", "100% of Train", "the study's value"])
    said = figures.caption("ablation_grid", frame)
    assert "of 14 differences 7 have a 95% interval clear of 0" in said
    assert "adapt.alpha 0.25 at 100% of Train: -0.100 [-0.150, -0.050]" in said
    plain = frame[frame["fraction"] == 1].drop(columns=["of", "fraction"])
    assert len(figures.ablation_grid(plain).axes) == 4
    figures.ablation_grid(frame[:0]).canvas.draw()
    assert "nothing to compare" in figures.caption("ablation_grid", frame[:0])
    more = pd.concat([frame.assign(dataset=d, metric=m) for d in ("all", "hm") for m in ("accuracy", "macro_f1")])
    assert len(figures.ablation_grid(more).axes) == 4


def test_confusions_in_words():
    frame = confusion_frame()
    fig = figures.confusions(frame)
    fig.canvas.draw()
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["beauty", "hm"]
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert names[0] == "$mug_, called lamp"
    assert len(names[1]) < 60
    assert [bar.get_width() for bar in fig.axes[0].patches] == [8, -2]
    said = figures.caption("confusions", frame)
    assert "In beauty most often won: $mug_ called lamp (9 won, 1 lost of 30)" in said
    assert "In hm most often lost: a called b (0 won, 1 lost of 3)" in said
    figures.confusions(frame[:0]).canvas.draw()
    assert "No pair" in figures.caption("confusions", frame[:0])
