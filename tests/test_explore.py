"""Exploring: questions against hand-computed cases; tables and encoders that are not ours; the chart and its data."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image
from torch.nn.functional import normalize

from icssl_lib import explore
from icssl_lib import space as spaces
from icssl_lib.config import Run
from icssl_lib.encoders import ModelError
from icssl_lib.runs import path_of
from icssl_lib.space import Exploration, ExploreError, View

HOSTILE = [
    "<script>window.taken = 1</script>",
    "</script><img src=x onerror='window.taken = 1'>",
    "__proto__",
    "constructor",
    "half \ud83d of a pair",
    "\"quotes' & {{braces}} `ticks` \\u003c\\",
]
RED, BLUE = (toys.encode(Image.new("RGB", (20, 20), colour)) for colour in ("red", "blue"))


def unit(degrees):
    """Directions in the plane, (n, 2)."""
    angle = np.radians(np.asarray(degrees, dtype=float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def exploration(titles=("a", "b", "c"), labels=None, images=None, part="dev", size="head", **views):
    """An exploration of given embeddings."""
    titles, n = list(titles), len(titles)
    products = pd.DataFrame({"id": [f"p{i}" for i in range(n)], "title": titles, "label": labels or [""] * n})
    products = products.assign(part=part, size=size, image_row=np.arange(n) if images is None else images)

    def view(rows):
        return View(lambda some: rows[[titles.index(title) for title in some]], torch.as_tensor(rows))

    return Exploration(products, lambda row: None, {name: view(rows) for name, rows in views.items()})


def shared_space(titles, pictures, names="abcd", images=None, part="dev"):
    """A view whose titles are embedded as what they are projected to."""
    space = exploration(names, images=images, part=part, convirt=titles, origin=unit([0] * len(names)))
    space.views["convirt"].share = lambda: (lambda rows: rows, torch.as_tensor(pictures))
    return space


def test_neighbours_are_by_angle_without_the_product_itself():
    space = exploration("abcd", before=unit([0, 10, 100, 190]) * np.float32([[1], [9], [2], [5]]))
    found = space.nearest("before", 0, k=3)
    assert list(found.columns) == ["row", "id", "title", "label", "rank", "similarity"]
    assert list(found["row"]) == [1, 2, 3]
    assert list(found["rank"]) == [1, 2, 3]
    expected = [math.cos(math.radians(a)) for a in (10, 100, 190)]
    assert list(found["similarity"]) == pytest.approx(expected, abs=2e-6)
    assert len(space.nearest("before", 0, k=99)) == 3
    assert list(space.nearest("before", " b ", k=2)["title"]) == ["b", "a"]


def test_moved_is_the_share_of_neighbours_that_stayed():
    space = exploration("abcdef", before=unit([0, 5, 10, 90, 180, 181]), after=unit([0, 5, 90, 10, 180, 181]))
    found = space.moved("before", "after", k=2).set_index("row")
    assert found.loc[0, "kept"] == 0.5  # {1, 2} before, {1, 3} after
    for i in range(6):
        one, two = (set(space.nearest(view, i, 2)["row"]) for view in ("before", "after"))
        assert found.loc[i, "kept"] == len(one & two) / 2
    assert list(found["kept"]) == sorted(found["kept"])


def test_nothing_moved_in_the_same_space_rotated_with_more_duplicates_than_neighbours():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 6)).astype(np.float32)
    rows[10:40] = rows[3]
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    space = exploration([str(i) for i in range(80)], before=rows, after=7 * rows @ turn)
    assert (space.moved("before", "after")["kept"] == 1).all()


def test_a_title_finds_pictures_and_each_is_listed_once():
    titles, pictures = unit([0, 90, 180, 270]), unit([100, 5, 181, 0])
    pictures[3] = np.nan
    space = shared_space(titles, pictures, images=[0, 1, 2, -1])
    for query in ("a", 0):
        assert list(space.nearest("convirt", query, 9, pictures=True)["row"]) == [1, 0, 2]
    twice = shared_space(unit([0, 1, 2, 3]), unit([0, 0, 10, 20]), images=[5, 5, 6, 7])
    assert list(twice.nearest("convirt", "a", 9, pictures=True)["row"]) == [0, 2, 3]


def test_recall_by_hand():
    # Pictures of titles 0 and 1 are swapped but for an angle: both are found second, the others first.
    table = shared_space(unit([0, 30, 90, 180]), unit([29, 2, 95, 170])).recall("convirt", ks=(1, 2, 3))
    for direction in ("title to picture", "picture to title"):
        rows = table[table["direction"] == direction]
        assert list(rows["recall"]) == [0.5, 1, 1]
        assert list(rows["chance"]) == pytest.approx([0.25, 0.5, 0.75])
        assert list(rows["n"]) == [4, 4, 4]


def test_recall_is_of_distinct_titles_and_pictures():
    # "A!" is the title "a". Picture 2 is of two products. Title 3 has none. Picture 0 lies opposite to its title.
    titles, pictures = unit([0, 0, 90, 91, 180]), unit([181, 0, 90, 90, 0])
    space = shared_space(titles, pictures, ["a", "A!", "b", "c", "d"], [0, 1, 2, 2, -1])
    table = space.recall("convirt", ks=(1, 5)).set_index(["direction", "k"])
    assert list(table["n"]) == [2] * 4  # a and b
    assert table["recall"].tolist() == [0.5, 1, 0.5, 1]
    assert table["chance"].tolist() == [0.5, 1, 0.5, 1]
    space.products["part"] = ["ssl", "ssl", "dev", "dev", "test"]
    assert list(space.recall("convirt", ks=(1,))["n"]) == [1, 1]  # of Dev alone


def test_collapsed_spaces_and_random_pairs_recall_chance():
    one = np.ones((40, 3), np.float32)
    table = shared_space(one, one, [f"t{i}" for i in range(40)]).recall("convirt", (1, 10))
    assert table["recall"].to_numpy() == pytest.approx(table["chance"].to_numpy())
    rows = np.random.default_rng(0).normal(size=(2, 600, 16)).astype(np.float32)
    table = shared_space(*rows, [f"t{i}" for i in range(600)]).recall("convirt", (1, 60))
    assert table["recall"].to_numpy() == pytest.approx(table["chance"].to_numpy(), abs=0.03)


def test_confusions_count_pairs_of_classes():
    space = exploration("abcdef", ["x", "x", "x", "y", "y", "z"], before=unit(range(6)), after=unit(range(6)))
    space.views["before"].predicted = np.array(["y", "y", "x", "x", "y", None], dtype=object)
    space.views["after"].predicted = np.array(["x", "y", "z", "y", "y", None], dtype=object)
    expected = [("x", "y", 2, 1, -1), ("x", "z", 0, 1, 1), ("y", "x", 1, 0, -1)]
    assert list(space.confusions("before", "after").itertuples(index=False, name=None)) == expected


def test_a_selection_tells_its_words():
    titles = [f"Alma mug {i}" for i in range(30)] + [f"Alma lamp {i}" for i in range(170)]
    space = exploration(titles, ["mug"] * 30 + ["lamp"] * 170, before=unit(range(200)))
    chosen = [*range(25), 100, 100, 3]
    words = space.words(chosen).set_index("word")
    assert words.index[0] == "mug"
    assert tuple(words.loc["mug", ["inside", "outside"]]) == (25, 5)
    assert words.loc["alma", "z"] == pytest.approx(0, abs=0.5)  # everywhere


def test_log_odds_by_hand():
    space = exploration(["u", "v", "v", "v", "v"], before=unit(range(5)))
    found = space.words([0, 1]).set_index("word")
    # Prior 2 * (1/5, 4/5). u: (1 + .4) of 4 inside, (0 + .4) of 5 outside.
    odds = math.log(1.4 / 2.6) - math.log(0.4 / 4.6)
    assert found.loc["u", "z"] == pytest.approx(odds / math.sqrt(1 / 1.4 + 1 / 0.4))
    assert found.loc["v", "z"] == pytest.approx(-odds / math.sqrt(1 / 2.6 + 1 / 4.6))


def test_measures_of_known_spaces():
    labels, titles = ["x", "y"] * 20, [f"t{i}" for i in range(40)]
    cross = np.tile(np.eye(2, dtype=np.float32), (20, 1))  # two orthogonal points
    found = exploration(titles, labels, size=["head", "tail"] * 20, cross=cross).measures("cross")
    found = found.set_index(["measure", "part"])["value"]
    assert found["anisotropy", "all"] == pytest.approx(2 * 20 * 19 / (40 * 39))  # pairs at one point, of all pairs
    assert found["anisotropy", "head"] == pytest.approx(1)
    assert found["label agreement", "tail"] == 1
    share = 2 * 190 / 780  # of pairs at distance 0; the others at squared distance 2
    assert found["uniformity", "all"] == pytest.approx(math.log(share + (1 - share) * math.exp(-4)))
    assert found["effective rank", "all"] == pytest.approx(1)


def test_effective_rank_counts_equal_directions():
    assert spaces.effective_rank(np.vstack([np.eye(5), -np.eye(5)])) == pytest.approx(5)


@pytest.fixture(scope="module")
def run(tiny_text, tiny_vision, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return toys.run_folder(out, tiny_text, tiny_vision), out


def test_views_of_a_study(run, toy):
    study, out = run
    space = explore.open_run(study, out, "toy", ["origin", "convirt"])
    assert list(space.views) == ["origin", "convirt"]
    assert list(space.products["id"]) == list(toy.products["id"])
    assert set(space.products["size"]) == {"head", "tail"}
    near = space.nearest("convirt", 0, 5)
    typed = space.nearest("convirt", space.products["title"][0], 6)
    assert set(near["row"]) <= {*typed["row"]}
    test = (space.products["part"] == "test").to_numpy()
    assert set(space.views["origin"].predicted[test]) == {"rug"}
    assert list(space.views["convirt"].predicted[test]) == list(space.products["label"][test])
    assert pd.isna(space.views["origin"].predicted[~test]).all()
    row = int(space.products.index[space.products["image_row"] >= 0][0])
    assert (space.picture(row) == toy.images[[space.products["image_row"][row]]][0]).all()
    dev = explore.open_run(study, out, "toy", ["origin"], part="dev").products
    assert set(dev["part"]) == {"dev"}
    classes, seen = (set(map(tuple, table[["label", "size"]].to_numpy())) for table in (space.products, dev))
    assert seen <= classes  # head and tail are of Train


def test_the_shared_space_is_what_adaptation_measured(run):
    """title-picture alignment of `adapt.measure` on Dev, from the towers as they were kept."""
    study, out = run
    space = explore.open_run(study, out, "toy", ["convirt"], part="dev")
    project, pictures = space.views["convirt"].share()
    titles = project(space.views["convirt"].titles)
    found = float(normalize(titles).sub(normalize(pictures)).square().sum(dim=1).mean())
    left = pd.read_csv(path_of(out, "encoders", Run("toy", "convirt", 0)) / "space.csv")
    left = left.set_index(["measure", "when"])["value"]
    assert found == pytest.approx(left["title-picture alignment", "after"], abs=1e-4)
    measured = space.measures("convirt").set_index(["measure", "part"])["value"]
    assert measured["uniformity", "all"] == pytest.approx(left["title uniformity", "after"], abs=1e-4)
    assert len(space.nearest("convirt", "alma mug", 3, pictures=True)) == 3


def test_a_study_that_cannot_be_explored(run, tmp_path):
    study, out = run
    with pytest.raises(ModelError, match=r"simcse.seed0 holds no config.json"):
        explore.open_run(study, out, "toy", ["simcse"])
    shutil.copytree(out, tmp_path / "run")
    (path_of(tmp_path / "run", "encoders", Run("toy", "convirt", 0)) / "towers.safetensors").unlink()
    space = explore.open_run(study, tmp_path / "run", "toy", ["convirt"])
    assert len(space.nearest("convirt", 0)) == 10
    with pytest.raises(ModelError, match=r"towers.safetensors: .*[Nn]o such file.*run the adaptation again"):
        space.nearest("convirt", "mug", pictures=True)


def test_a_table_and_encoders_that_are_not_ours(tiny_text, tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    columns = {
        "title": ["alma mug 1", "  ", "bora rug", None, "alma mug 1", "cira lamp"],
        "label": ["mug", "mug", "rug", "rug", "mug", None],
        "image": ["red.png", "red.png", BLUE, None, "gone.png", "red.png"],
        "size": ["XL"] * 6,
    }
    table = pd.DataFrame(columns, index=list("uvwxyz"))
    embed = lambda titles: np.array([[len(title), 1.0] for title in titles])  # noqa: E731
    space = explore.explore(table, {"before": str(tiny_text), "after": embed}, images=tmp_path, max_tokens=8)
    products = space.products
    assert list(products["id"]) == ["u", "w", "y", "z"]
    assert list(products["label"]) == ["mug", "rug", "mug", ""]
    assert list(products["size"]) == ["head", "head", "head", ""]
    assert [None if p is None else tuple(p[32, 32]) for p in map(space.picture, range(4))] == [
        (255, 0, 0), (0, 0, 255), None, (255, 0, 0),
    ]  # fmt: skip
    assert [view.titles.shape for view in space.views.values()] == [(4, 32), (4, 2)]
    assert space.nearest("before", 0, 1)["row"].tolist() == [2]
    assert set(space.moved("before", "after")["kept"]) <= {1 / 3, 2 / 3, 1.0}


@pytest.mark.parametrize(("columns", "message"), [
    ({"title": [["a", "b"]]}, "column 'title' holds a list, expected a text"),
    ({"title": ["a"], "label": [np.array([1, 2])]}, "column 'label' holds a ndarray, expected a text"),
    ({"title": ["a"], "label": [{"a": 1}]}, "column 'label' holds an object, expected a text"),
    ({"titel": ["a"]}, r"expected distinct columns, one of them title; found \['titel'\]"),
    ({("title", "en"): ["a"]}, "expected distinct columns"),
    ({"title": ["", None]}, "none of 2 products has a title"),
    ({"title": ["a"], "image": [np.zeros((3, 3, 3))]}, r"'image' holds float64 pixels \(3, 3, 3\), not uint8"),
])  # fmt: skip
def test_a_table_that_cannot_be_explored_has_an_error_of_one_kind(columns, message):
    with pytest.raises(ExploreError, match=message):
        explore.explore(pd.DataFrame(columns), {"mine": len})
    for table in (pd.DataFrame([["a", "b"]], columns=["title", "title"]), pd.Series(["a"]), {"title": ["a"]}):
        with pytest.raises(ExploreError, match="expected distinct columns"):
            explore.explore(table, {})


@pytest.mark.parametrize("encoders", [["a folder"], "a folder", None, {"mine": None}, {"mine": 3}])
def test_encoders_are_a_dict_of_folders_or_functions(encoders):
    with pytest.raises(ExploreError, match="encoders: expected a dict of names to folders, hub names or functions: "):
        explore.explore(pd.DataFrame({"title": ["mug"]}), encoders)


@pytest.mark.parametrize("rows", [None, [[1.0, 2.0]], [1.0, 2.0], [[1.0], [math.nan]], [[1.0], [1.0, 2.0]], ["a", "b"]])
def test_an_encoder_gives_a_row_of_finite_numbers_for_each_title(rows):
    with pytest.raises(ExploreError, match="encoder 'mine' gives no row of finite numbers for each title: "):
        explore.explore(pd.DataFrame({"title": ["mug", "lamp"]}), {"mine": lambda titles: rows})


def test_questions_that_cannot_be_answered():
    space = exploration("abc", before=unit([0, 1, 2]), after=unit([0, 1, 2]))
    for question, message in (
        (lambda: space.nearest("before", "a", pictures=True), "has no joint space with pictures"),
        (lambda: space.moved("befor", "after"), "no view 'befor'; did you mean 'before'"),
        (lambda: space.words([]), "the selection is empty"),
        (lambda: explore.linked_maps(space), "3 products; a map needs at least 5"),
    ):
        with pytest.raises(ExploreError, match=message):
            question()
    assert space.confusions("before", "after").empty  # no classifier was asked


def blobs(n=300, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 6, n)
    return ((rng.normal(size=(6, 20)) * 2)[label] + rng.normal(size=(n, 20))).astype(np.float32), label


def test_a_product_that_kept_its_neighbours_keeps_its_place():
    rows, _ = blobs()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0].astype(np.float32)
    before, rotated = explore.project([*map(torch.from_numpy, (rows, (rows @ turn)[:, :19]))])
    assert np.median(np.linalg.norm(before - rotated, axis=1)) < 4  # of 100
    after = rows.copy()
    after[:60] = rows[np.random.default_rng(2).permutation(300)[:60]]  # sixty products go elsewhere
    before, after = explore.project([torch.from_numpy(rows), torch.from_numpy(after)])
    way = np.linalg.norm(before - after, axis=1)
    assert np.median(way[:60]) > 3 * np.median(way[60:])
    assert np.stack([before, after]).min() >= 0
    assert np.stack([before, after]).max() <= 100.001


@pytest.fixture(scope="module")
def hostile():
    """Twelve products a class, of hostile titles, labels and ids."""
    rows, _ = blobs(12 * len(HOSTILE))
    table = pd.DataFrame({"title": HOSTILE * 12, "label": sorted(HOSTILE * 12)}, dtype=object)
    table = table.assign(id=table["title"], image=[RED] * len(table))
    space = explore.explore(table, {"__proto__": lambda _: rows, "after": lambda _: rows[::-1].copy()})
    for view in space.views.values():
        view.predicted = space.products["title"].to_numpy(dtype=object)
    return space, explore.linked_maps(space, most=60)


def rows_of(chart):
    return pd.DataFrame(json.loads(chart.data.values))


def test_the_sample_is_stratified_seeded_and_said(hostile):
    space, chart = hostile
    rows = rows_of(chart)
    assert len(rows) == 60
    assert set(rows["label"].value_counts()) == {10}
    assert chart.title.text.startswith("60 products of 72, a sample stratified by class")
    assert rows["row"].tolist() == rows_of(explore.linked_maps(space, most=60))["row"].tolist()
    near = rows["near0"].str.split().map(lambda near: set(map(int, near)))
    assert near.map(len).eq(11).all()  # and the product itself
    assert set().union(*near) <= set(rows["row"])


def test_no_text_of_a_catalogue_leaves_the_data(hostile):
    space, chart = hostile
    page = chart.to_html(inline=True)
    page = page[page.rindex("</head>") :]  # without the library
    assert page.count("<script") == page.count("</script") == 1
    assert "onerror" in page
    assert "<img" not in page
    assert rows_of(chart)["title"].isin(space.products["title"]).all()
    assert any(title == "half ? of a pair" for title in space.products["title"])
    page.encode("utf-8")
    data, _ = explore.Live(chart)._repr_mimebundle_()
    frame = data["text/html"]
    assert frame.count("<") == 2  # the frame's own tags
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_chart_becomes_a_picture_and_tells_its_selection(hostile, tmp_path):
    _, chart = hostile
    chart.save(tmp_path / "maps.png")
    assert Image.open(tmp_path / "maps.png").size[0] > 900
    live = explore.Live(chart)
    assert len(live.selected) == 60
    rows = rows_of(chart)
    middle = rows["x0"].median()
    state = {"brush": {"value": {"x0": [0, middle], "y0": [-9, 109]}, "store": [{"unit": "a"}]}}
    live._vl_selections = dict(live._vl_selections) | state
    assert set(live.selected["row"]) == set(rows["row"][rows["x0"] <= middle])


def test_one_view_without_labels_or_pictures_is_drawn():
    rows, _ = blobs(40)
    space = explore.explore(pd.DataFrame({"title": [f"t{i}" for i in range(40)]}), {"alone": lambda titles: rows})
    chart = explore.linked_maps(space)
    assert set(rows_of(chart)["image"]) == {""}
    assert len(chart.vconcat[0].hconcat) == 2  # a map and the legend
