"""The explorer's widget without a browser: what it shows, what a click or a typed title does, hostile texts."""

import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

from icssl_lib import explore as ask
from icssl_lib import widgets
from icssl_lib.encoders import ModelError
from icssl_lib.explore import ExploreError

HOSTILE = "<img src=x onerror=alert(1)> \"mug\" 'lamp' & </script> 🧴"


@pytest.fixture(scope="module")
def table(toy) -> pd.DataFrame:
    products = toy.products.assign(image=[_png(toy, row) for row in toy.products["image_row"]])
    products.loc[0, ["title", "label"]] = HOSTILE, "<b>mug</b>"
    return products


def _png(toy, row: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(toy.images[[row]][0]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, tiny_text) -> dict[str, str]:
    other = toys.save_text(tmp_path_factory.mktemp("after") / "text", hidden_size=64)
    return {"before": str(tiny_text), "<i>after</i>": str(other)}


@pytest.fixture(scope="module")
def space(table, encoders):
    space = ask.of_table(table, encoders, image_size=toys.SIZE)
    rng = np.random.default_rng(0)
    guessed = np.where(rng.random((2, 120)) < 0.6, space.products["label"], "rug").astype(object)
    guessed[:, :60] = None  # the classifiers were asked about half
    for view, labels in zip(space.views.values(), guessed, strict=True):
        view.predicted = labels
    return space


@pytest.fixture
def explorer(space, positions):
    return widgets.Explorer(space, positions)


@pytest.fixture(scope="module")
def positions(space):
    return ask.project(space)


def everything(widget) -> list:
    """The widget and all below it."""
    return [widget] + [w for child in getattr(widget, "children", ()) for w in everything(child)]


def legend(explorer) -> dict[str, int]:
    """Name to count of the legend's entries."""
    found = [re.fullmatch(r"(.*) \(([\d,]+)\)", button.description).groups() for button in explorer._legend.children]
    return {name: int(count.replace(",", "")) for name, count in found}


def cards(group: dict) -> list[int]:
    return [card["position"] for card in group["cards"]]


def test_three_lines_draw_one_map(table, tiny_text):
    explorer = widgets.explore(table[["title"]], str(tiny_text))
    assert [list(explorer.positions), len(explorer._scatters)] == [["encoder"], 1]
    assert list(explorer._sections) == ["Neighbours", "Selection"]  # nothing to compare with, no pictures, no classes
    assert explorer._colour.options == ("Nothing",)
    explorer._query.value = "alma mug"
    near = ask.neighbours(explorer.space, "encoder", "alma mug", widgets.NEAREST)
    assert [cards(g) for g in explorer._neighbours.groups] == [near["position"].tolist()]
    assert explorer._neighbours.groups[0]["cards"][0]["picture"] == ""


def test_all_maps_have_the_same_square_axes(explorer, positions):
    first, second = (scatter.widget for scatter in explorer._scatters)
    assert first.x_scale_domain == second.x_scale_domain
    assert first.y_scale_domain == second.y_scale_domain
    assert np.ptp(first.x_scale_domain) == pytest.approx(np.ptp(first.y_scale_domain))
    for widget, there in zip((first, second), positions.values(), strict=True):
        low, high = np.array([widget.x_scale_domain, widget.y_scale_domain]).T
        np.testing.assert_allclose((widget.points[:, :2] + 1) / 2 * (high - low) + low, there, atol=1e-4)


@pytest.mark.parametrize(("by", "other"), [(0, 1), (1, 0)])
def test_selecting_and_hovering_in_one_map_does_so_in_the_other(explorer, by, other):
    scatters = [scatter.widget for scatter in explorer._scatters]
    scatters[by].selection = np.array([3, 70, 9], dtype=np.uint32)
    assert list(scatters[other].selection) == [3, 70, 9]
    assert explorer.selection.tolist() == [3, 70, 9]
    assert explorer.selected["id"].tolist() == explorer.space.products["id"][[3, 70, 9]].tolist()
    scatters[by].hovering = 5
    assert scatters[other].hovering == 5


def test_selection_may_be_set_and_cleared(explorer):
    explorer.selection = [4, 2]
    assert [list(s.widget.selection) for s in explorer._scatters] == [[4, 2]] * 2
    explorer._clear.click()
    assert [list(s.widget.selection) for s in explorer._scatters] == [[]] * 2
    with pytest.raises(ExploreError, match="0 to 119"):
        explorer.selection = [120]


def test_a_lasso_opens_what_sets_it_apart(explorer):
    mugs = np.flatnonzero(explorer.space.products["label"] == "mug")
    explorer._scatters[1].widget.selection = mugs.astype(np.uint32)
    assert explorer._opened == "Selection"
    found = ask.region(explorer.space, mugs)
    assert re.findall(r"<td>(\w+)</td>", explorer._labels.value)[0] == found["labels"]["label"][0] == "mug"
    assert f"<td>{found['words']['word'][0]}</td>" in explorer._words.value
    assert cards(explorer._region.groups[0]) == mugs[:24].tolist()


def test_one_product_opens_its_neighbours_in_each_view(explorer):
    explorer._scatters[0].widget.selection = np.array([7], dtype=np.uint32)
    assert explorer._opened == "Neighbours"
    own, *groups = explorer._neighbours.groups
    assert cards(own) == [7]
    for group, name in zip(groups, explorer.positions, strict=True):
        near = ask.neighbours(explorer.space, name, 7, widgets.NEAREST)
        assert cards(group) == near["position"].tolist()
        agrees = [card["agrees"] for card in group["cards"]]
        assert agrees == (near["label"] == explorer.space.products["label"][7]).tolist()
        assert all(card["picture"].startswith("data:image/jpeg;base64,") for card in group["cards"])
    explorer._neighbours._handle_custom_msg({"position": 11}, [])  # a click on a card, as the browser sends it
    assert explorer.selection.tolist() == [11]
    assert cards(explorer._neighbours.groups[0]) == [11]


def test_typing_a_title_lists_its_neighbours_and_lights_them_up(explorer):
    explorer._query.value = "alma lamp"
    near = [ask.neighbours(explorer.space, name, "alma lamp", widgets.NEAREST) for name in explorer.positions]
    assert [cards(group) for group in explorer._neighbours.groups] == [n["position"].tolist() for n in near]
    assert set(explorer.selection) == set(np.concatenate([n["position"] for n in near]))
    assert explorer._opened == "Neighbours"
    explorer._query.value = "# 12"
    assert explorer.selection.tolist() == [12]
    explorer._query.value = "#120"
    assert "0 to 119" in explorer._status.value
    assert explorer.selection.tolist() == [12]


def test_colours(explorer):
    label, space = explorer.space.products["label"], explorer.space
    assert explorer._colour.options == ("Class", "Head or tail", "Right or wrong", "Movement")
    assert legend(explorer) == label.value_counts().to_dict()
    explorer._colour.value = "Head or tail"
    assert legend(explorer) == space.products["size"].value_counts().to_dict()
    explorer._colour.value = "Right or wrong"
    before, after = (view.predicted == label for view in space.views.values())
    asked = np.arange(120) >= 60
    assert legend(explorer) == {
        "wrong, then right": (~before & after & asked).sum(),
        "right, then wrong": (before & ~after & asked).sum(),
        "wrong in both": (~before & ~after & asked).sum(),
        "right in both": (before & after & asked).sum(),
        "no prediction": 60,
    }
    explorer._colour.value = "Movement"
    kept = ask.moved(space, *space.views)["kept"]
    assert legend(explorer).get("no neighbour stayed", 0) == (kept == 0).sum()
    assert sum(legend(explorer).values()) == 120
    assert legend(explorer).get("most stayed", 0) == ((kept > 0.667) & (kept < 1)).sum()
    codes = [scatter.widget.points[:, 2] for scatter in explorer._scatters]
    assert (codes[0] == codes[1]).all()  # one legend for all maps
    assert len(explorer._scatters[0].widget.color) == len(legend(explorer))


def test_the_steps_of_movement():
    space = ask.Exploration("toy", pd.DataFrame({"title": list("abcdef"), "label": "", "size": ""}), None, {})
    explorer = widgets.Explorer.__new__(widgets.Explorer)
    explorer.space = space
    explorer._moved = pd.DataFrame({"position": [5, 4, 3, 2, 1, 0], "kept": [0, 0.1, 0.3, 0.6, 0.9, 1.0]})
    names = ["all stayed", "most stayed", "up to two thirds", *["under a third stayed"] * 2, "no neighbour stayed"]
    assert widgets.Explorer._by_movement(explorer).values.tolist() == names


def test_the_rarest_stay_on_top_and_the_rest_lies_below(explorer):
    explorer._colour.value = "Right or wrong"
    order, codes = explorer._scatters[0].widget.point_order, explorer._scatters[0].widget.points[:, 2]
    assert sorted(order) == list(range(120))
    assert (np.diff(codes[order]) <= 0).all()  # later points lie above; "no prediction" has the highest code


def test_an_entry_of_the_legend_selects_its_products(explorer):
    button = next(b for b in explorer._legend.children if b.description.startswith("rug"))
    button.click()
    assert explorer.selection.tolist() == np.flatnonzero(explorer.space.products["label"] == "rug").tolist()


def test_moved_and_confused(explorer):
    explorer._open("Moved most")
    assert (
        cards(explorer._changed.groups[0]) == ask.moved(explorer.space, *explorer.positions)["position"][:24].tolist()
    )
    explorer._open("Confused classes")
    first = ask.confusions(explorer.space, *explorer.positions).iloc[0]
    assert explorer._pairs.options[0][0].startswith(f"{first['label']} taken for {first['predicted']}: ")
    explorer._pairs.value = 0
    assert [len(group["cards"]) for group in explorer._confused.groups] == [
        min(first[w], 12) for w in ("before", "after")
    ]
    assert (explorer.selected["label"] == first["label"]).all()
    assert explorer._opened == "Confused classes"


def test_titles_and_pictures(space, positions, monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 16)).astype(np.float32)
    shared = ask.Shared(rows, rows, lambda titles: np.ones((len(titles), 16), np.float32))
    view = list(space.views.values())[1]
    monkeypatch.setattr(view, "share", lambda: shared)
    monkeypatch.setitem(view.__dict__, "shared", shared)
    space.products["part"] = "dev"
    explorer = widgets.Explorer(space, positions)
    space.products["part"] = ""
    explorer._open("Titles and pictures")
    assert explorer._retrieved.groups[0]["cards"] == []
    explorer._choose(9)
    own, titles, _ = explorer._retrieved.groups
    assert cards(own) == [9]
    assert cards(titles) == ask.titles_of(space, view.name, 9, widgets.NEAREST)["position"].tolist()
    assert cards(titles)[0] == 9  # the same rows on both sides: its own title is nearest
    explorer._query.value = "red lamp"
    assert explorer._opened == "Titles and pictures"
    expected = ask.pictures_of(space, view.name, "red lamp", widgets.NEAREST)["position"].tolist()
    assert [cards(group) for group in explorer._retrieved.groups] == [expected]


def test_a_view_that_kept_no_towers_is_told(space, positions, monkeypatch):
    def gone():
        raise ModelError("towers.safetensors is missing; run the adaptation again <now>")

    monkeypatch.setattr(space.view("before"), "share", gone)
    explorer = widgets.Explorer(space, positions)
    explorer._choose(3)
    explorer._open("Titles and pictures")
    assert "run the adaptation again &lt;now&gt;" in explorer._status.value


def test_the_picture_under_the_mouse_is_sent(explorer):
    widget = explorer._scatters[0].widget
    sent = []
    widget.send = sent.append
    widget.hovering = 8
    widget._handle_tooltip({"index": 8, "preview": "picture", "properties": ["title", "label", "predicted"]})
    for message in sent:  # whichever comes first in the browser
        assert message["index"] == 8
        assert message["preview"] == explorer._picture(8)
    assert sent[-1]["properties"]["title"].replace("\n", " ") == explorer.space.products["title"][8]
    assert sent[-1]["properties"]["predicted"] == "(no prediction)"
    widget.hovering = None
    assert len(sent) == 2


def test_hostile_titles_labels_and_names_are_escaped(explorer):
    explorer._choose(0)
    explorer._open("Selection")
    explorer._query.value = HOSTILE
    html = [w.value for w in everything(explorer) if type(w).__name__ == "HTML"]
    text = " ".join(html)
    assert "&lt;b&gt;mug&lt;/b&gt;" in explorer._labels.value
    assert "&lt;i&gt;after&lt;/i&gt;" in text
    for tag in ("<img", "<script", "</script", "<i>", "<b>mug"):
        assert tag not in text
    source = (widgets.ASSETS / "cards.js").read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval", source)  # text is set as text


def test_the_repr_stays_short(explorer):
    assert repr(explorer) == "Explorer of 120 products in before, <i>after</i>"


def test_bad_input_is_told(table, space, tiny_text, tmp_path):
    with pytest.raises(ExploreError, match=r'name an encoder: explore\(table, "'):
        widgets.explore(table)
    with pytest.raises(ExploreError, match="has its encoders already"):
        widgets.explore(space, str(tiny_text))
    with pytest.raises(ExploreError, match="DataFrame or an Exploration, found list"):
        widgets.explore([1], str(tiny_text))
    with pytest.raises(ExploreError, match="title"):
        widgets.explore(table.rename(columns={"title": "titel"}), str(tiny_text))
    with pytest.raises(ModelError, match="nowhere"):
        widgets.explore(table, str(tmp_path / "nowhere"))


def test_nothing_is_drawn_on_import():
    code = "import sys, icssl_lib.widgets; print({'jscatter', 'umap', 'matplotlib'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
