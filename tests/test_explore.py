"""Exploring: neighbours, measures and maps against hand-computed cases; a table and an encoder that are not ours."""

import io
import itertools
import math
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image

from icssl_lib import adapt as stage
from icssl_lib import catalogue as cat
from icssl_lib import explore
from icssl_lib.encoders import ModelError
from icssl_lib.explore import Exploration, ExploreError, Shared, View
from icssl_lib.runs import piece


def unit(degrees):
    """Directions in the plane, (n, 2)."""
    angle = np.radians(np.asarray(degrees, dtype=float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def exploration(titles=("a", "b", "c"), labels=None, images=None, part="dev", **views):
    """An exploration of given embeddings."""
    titles = list(titles)
    n = len(titles)
    products = pd.DataFrame({"id": [f"p{i}" for i in range(n)], "title": titles, "label": labels or [""] * n})
    products = products.assign(part=part, size="head", image_row=np.arange(n) if images is None else images)

    def embed(some):
        return np.stack([views_titles[0][list(titles).index(t)] for t in some])

    views_titles = list(views.values())
    made = {k: View(k, v, embed, lambda titles, seed: embed(titles)) for k, v in views.items()}
    return Exploration("toy", products, None, made)


# --- neighbours


def test_neighbours_are_by_angle_without_the_product_itself():
    space = exploration("abcd", before=unit([0, 10, 100, 190]) * [[1], [9], [2], [5]])
    found = explore.neighbours(space, "before", 0, k=3)
    assert list(found.columns) == ["rank", "position", "id", "title", "label", "similarity"]
    assert list(found["position"]) == [1, 2, 3]
    assert list(found["rank"]) == [1, 2, 3]
    expected = [math.cos(math.radians(a)) for a in (10, 100, 190)]
    assert list(found["similarity"]) == pytest.approx(expected, abs=2e-6)
    assert len(explore.neighbours(space, "before", 0, k=99)) == 3


def test_a_typed_title_may_find_the_product_with_that_title():
    space = exploration("abcd", before=unit([0, 10, 100, 190]))
    assert list(explore.neighbours(space, "before", " b ", k=2)["title"]) == ["b", "a"]


def test_duplicates_are_neighbours_and_ties_go_by_position():
    space = exploration("aaaab", before=unit([0, 0, 0, 0, 1]))
    assert list(explore.neighbours(space, "before", 2, k=3)["position"]) == [0, 1, 3]
    assert list(explore.neighbours(space, "before", 4, k=2)["position"]) == [0, 1]


def test_all_neighbours_are_those_of_each_whatever_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, 8)).astype(np.float32)
    rows[50:90] = rows[7]  # forty duplicates, more than k
    monkeypatch.setattr(explore, "BLOCK", 17)
    position, similarity = explore.nearest_positions(rows, 10)
    cosine = np.round((lambda u: u @ u.T)(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(float), 5)
    np.fill_diagonal(cosine, -9)
    for i in range(150):
        expected = sorted(range(150), key=lambda j: (-cosine[i, j], j))[:10]
        assert list(position[i]) == expected
        assert similarity[i] == pytest.approx(cosine[i, expected], abs=2e-5)
    some, _ = explore.nearest_positions(rows, 10, np.array([60, 3]))
    assert (some == position[[60, 3]]).all()


def test_moved_is_the_share_of_neighbours_that_stayed():
    # Of product 0 the two nearest are {1, 2} before and {1, 3} after; 4 and 5 keep each other and lose one.
    before = unit([0, 5, 10, 90, 180, 181])
    after = unit([0, 5, 90, 10, 180, 181])
    space = exploration("abcdef", before=before, after=after)
    found = explore.moved(space, "before", "after", k=2).set_index("position")
    near = [explore.neighbours(space, v, 0, 2)["position"].tolist() for v in ("before", "after")]
    assert near == [[1, 2], [1, 3]]
    assert found.loc[0, "kept"] == 0.5
    assert found.loc[0, "old_before"] == pytest.approx(np.mean(np.cos(np.radians([5, 10]))), abs=1e-5)
    assert found.loc[0, "old_after"] == pytest.approx(np.mean(np.cos(np.radians([5, 90]))), abs=1e-5)
    for i in range(6):
        one, two = (set(explore.neighbours(space, v, i, 2)["position"]) for v in ("before", "after"))
        assert found.loc[i, "kept"] == len(one & two) / 2
    assert list(found["kept"]) == sorted(found["kept"])


def test_moved_is_one_for_the_same_embeddings_rotated_with_duplicates():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 6)).astype(np.float32)
    rows[10:40] = rows[3]
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    space = exploration([str(i) for i in range(80)], before=rows, after=7 * rows @ turn)
    assert (explore.moved(space, "before", "after")["kept"] == 1).all()


# --- titles and pictures


def shared_space(titles, pictures, names="abcd", images=None, part="dev"):
    space = exploration(names, images=images, part=part, convirt=unit([0] * len(names)), origin=unit([0] * len(names)))
    project = lambda some: np.stack([titles[list(names).index(t)] for t in some])  # noqa: E731
    space.views["convirt"].share = lambda: Shared(titles, pictures, project)
    return space


def test_titles_and_pictures_find_each_other():
    titles, pictures = unit([0, 90, 180, 270]), unit([100, 5, 181, 0])
    pictures[3] = np.nan
    space = shared_space(titles, pictures, images=[0, 1, 2, -1])
    assert list(explore.pictures_of(space, "convirt", "a", 9)["position"]) == [1, 0, 2]
    assert list(explore.titles_of(space, "convirt", 0, 2)["title"]) == ["b", "c"]
    with pytest.raises(ExploreError, match="position 3 has no picture"):
        explore.titles_of(space, "convirt", 3)
    with pytest.raises(ExploreError, match="'origin' shares no space with pictures; views that do: convirt"):
        explore.pictures_of(space, "origin", "a")


def test_a_picture_of_two_products_is_listed_once():
    pictures = unit([0, 0, 10, 20])
    space = shared_space(unit([0, 1, 2, 3]), pictures, images=[5, 5, 6, 7])
    assert list(explore.pictures_of(space, "convirt", "a", 9)["position"]) == [0, 2, 3]


def test_recall_by_hand():
    # Pictures of titles 0 and 1 are swapped but for an angle: both are found second, the others first.
    space = shared_space(unit([0, 30, 90, 180]), unit([29, 2, 95, 170]))
    table = explore.recall(space, "convirt", ks=(1, 2, 3))
    for direction in ("title to picture", "picture to title"):
        rows = table[table["direction"] == direction]
        assert list(rows["recall"]) == [0.5, 1, 1]
        assert list(rows["chance"]) == pytest.approx([0.25, 0.5, 0.75])
        assert list(rows["n"]) == [4, 4, 4]


def test_recall_with_equal_titles_and_shared_pictures():
    # "A!" is the title "a": it has pictures 0 and 1. Picture 2 is of two products. Title 3 has none.
    space = shared_space(
        unit([0, 0, 90, 91, 180]), unit([180, 0, 90, 90, 0]), ["a", "A!", "b", "c", "d"], [0, 1, 2, 2, -1]
    )
    table = explore.recall(space, "convirt", ks=(1,)).set_index("direction")
    assert table.loc["title to picture", "n"] == 3  # a, b, c
    assert table.loc["picture to title", "n"] == 3
    assert table.loc["title to picture", "recall"] == 1
    assert table.loc["title to picture", "chance"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    assert table.loc["picture to title", "recall"] == pytest.approx(2 / 3)  # picture 0 lies opposite to its title


def test_a_collapsed_space_recalls_nothing_and_random_pairs_recall_chance():
    one = np.ones((40, 3), np.float32)
    names = [f"t{i}" for i in range(40)]
    assert (explore.recall(shared_space(one, one, names), "convirt", (1, 10))["recall"] == 0).all()
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(600)]
    space = shared_space(*rng.normal(size=(2, 600, 16)).astype(np.float32), names)
    table = explore.recall(space, "convirt", (1, 60))
    assert table["recall"].to_numpy() == pytest.approx(table["chance"].to_numpy(), abs=0.03)


def test_recall_is_of_dev_only():
    space = shared_space(unit([0, 90, 180, 270]), unit([0, 90, 0, 90]), part=["dev", "dev", "ssl", "test"])
    assert (explore.recall(space, "convirt", (1,))[["recall", "n"]] == [1, 2]).all(axis=None)
    with pytest.raises(ExploreError, match="no product of part 'train' with a picture"):
        explore.recall(space, "convirt", part="train")


# --- classes and regions


def test_confusions_count_pairs_of_classes():
    space = exploration("abcdef", ["x", "x", "x", "y", "y", "z"], before=unit(range(6)), after=unit(range(6)))
    space.views["before"].predicted = np.array(["y", "y", "x", "x", "y", None], dtype=object)
    space.views["after"].predicted = np.array(["x", "y", "z", "y", "y", None], dtype=object)
    found = explore.confusions(space, "before", "after")
    expected = [("x", "y", 2, 1, -1), ("x", "z", 0, 1, 1), ("y", "x", 1, 0, -1)]
    assert list(found.itertuples(index=False, name=None)) == expected
    space.views["after"].predicted = None
    with pytest.raises(ExploreError, match="'after' has no predictions"):
        explore.confusions(space, "before", "after")


def test_a_region_tells_its_words_and_labels():
    titles = [f"Alma mug {i}" for i in range(30)] + [f"Alma lamp {i}" for i in range(170)]
    space = exploration(titles, ["mug"] * 30 + ["lamp"] * 170, before=unit(range(200)))
    found = explore.region(space, [*range(25), 100, 100, 3])
    assert list(found["titles"]["position"]) == [*range(25), 100]
    labels = found["labels"].set_index("label")
    assert list(labels.index) == ["mug", "lamp"]
    assert tuple(labels.loc["mug", ["count", "share", "elsewhere"]]) == pytest.approx((25, 25 / 26, 5 / 174))
    words = found["words"].set_index("word")
    assert list(words.index) == ["mug", "alma"]  # none of the numbers, which stand once
    assert tuple(words.loc["mug", ["inside", "outside", "lift"]]) == pytest.approx((25, 5, (25 / 26) / (30 / 200)))
    assert words.loc["alma", "z"] == pytest.approx(0, abs=0.5)  # everywhere
    with pytest.raises(ExploreError, match="the selection is empty"):
        explore.region(space, [])


def test_log_odds_by_hand():
    inside = np.array([True, True, False, False, False])
    found = explore._odds(pd.Series([["u"], ["v"], ["v"], ["v"], ["v"]]), inside, "word").set_index("word")
    # Prior 2 * (1/5, 4/5). u: (1 + .4) of 4 inside, (0 + .4) of 5 outside.
    odds = math.log(1.4 / 2.6) - math.log(0.4 / 4.6)
    assert found.loc["u", "z"] == pytest.approx(odds / math.sqrt(1 / 1.4 + 1 / 0.4))
    assert found.loc["v", "z"] == pytest.approx(-odds / math.sqrt(1 / 2.6 + 1 / 4.6))


# --- measures


def test_measures_of_known_spaces():
    rng = np.random.default_rng(0)
    labels = ["x", "y"] * 20
    cross = np.tile(np.eye(2, dtype=np.float32), (20, 1))  # two orthogonal points
    space = exploration([f"t{i}" for i in range(40)], labels, cross=cross)
    space.products["size"] = ["head", "tail"] * 20
    found = explore.measures(space, "cross").set_index(["measure", "part"])["value"]
    assert found["title alignment", "all"] == pytest.approx(0, abs=1e-6)
    assert found["anisotropy", "all"] == pytest.approx(2 * 20 * 19 / (40 * 39))  # pairs at one point, of all pairs
    assert found["anisotropy", "head"] == pytest.approx(1)
    assert found["label agreement", "tail"] == 1
    share = 2 * 190 / 780  # of pairs at distance 0; the others at squared distance 2
    assert found["uniformity", "all"] == pytest.approx(math.log(share + (1 - share) * math.exp(-4)))
    assert found["effective rank", "all"] == pytest.approx(1)
    assert "title-picture alignment" not in found
    assert set(found.index.get_level_values("measure")) < set(explore.MEASURES)
    sphere = rng.normal(size=(40, 8)).astype(np.float32)
    space = exploration([f"t{i}" for i in range(40)], space.products["label"].tolist(), cross=sphere)
    values = explore.measures(space, "cross").set_index(["measure", "part"])["value"]
    u = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    pairs = list(itertools.combinations(range(40), 2))
    assert values["anisotropy", "all"] == pytest.approx(np.mean([u[i] @ u[j] for i, j in pairs]), abs=1e-6)
    near = [sorted((k for k in range(40) if k != i), key=lambda j: -u[i] @ u[j])[:10] for i in range(40)]
    agree = np.mean([[(j - i) % 2 == 0 for j in near[i]] for i in range(40)])
    assert values["label agreement", "all"] == pytest.approx(agree)
    assert np.isnan(values["anisotropy", "tail"])


def test_title_picture_alignment_leaves_titles_without_pictures_out():
    pictures = unit([90, 0, 0, 0])
    pictures[3] = np.nan
    space = shared_space(unit([0, 0, 0, 0]), pictures)
    found = explore.measures(space, "convirt").set_index(["measure", "part"])["value"]
    assert found["title-picture alignment", "all"] == pytest.approx(2 / 3)  # one of three at squared distance 2


def test_effective_rank_counts_equal_directions():
    assert explore.effective_rank(np.vstack([np.eye(5), -np.eye(5)])) == pytest.approx(5)
    assert explore.effective_rank(np.ones((4, 3))) == pytest.approx(1)
    values = np.array([3.0, 1.0])
    rows = np.vstack([np.diag(values), -np.diag(values)])
    p = values / values.sum()
    assert explore.effective_rank(rows) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_over_seeds_is_students_interval():
    table = pd.DataFrame({"method": ["a"] * 3 + ["b"], "seed": [0, 1, 2, 0], "value": [1.0, 2.0, 3.0, 5.0]})
    found = explore.over_seeds(table).set_index("method")
    half = 4.302653 * 1 / math.sqrt(3)  # t(0.975, 2), standard deviation 1
    assert tuple(found.loc["a"]) == pytest.approx((3, 2, 2 - half, 2 + half))
    assert found.loc["b", "value"] == 5
    assert found.loc["b", ["low", "high"]].isna().all()


# --- the map


def blobs(n=300, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 6, n)
    centres = rng.normal(size=(6, 20)) * 2
    return (centres[label] + rng.normal(size=(n, 20))).astype(np.float32), label


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    rows, _ = blobs()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0].astype(np.float32)
    after = rows.copy()
    after[:60] = rows[np.random.default_rng(2).permutation(300)[:60]]  # sixty products go elsewhere
    space = exploration([str(i) for i in range(300)], before=rows, rotated=rows @ turn, after=after)
    space.cache = tmp_path_factory.mktemp("map")
    return space, explore.project(space, ["before", "rotated"]), explore.project(space, ["before", "after"])


def across(there):
    return np.linalg.norm(np.ptp(np.concatenate(list(there.values())), axis=0))


def test_a_rotated_view_coincides_and_products_that_moved_move(mapped):
    _, same, changed = mapped
    way = np.linalg.norm(same["before"] - same["rotated"], axis=1) / across(same)
    assert np.median(way) < 0.03
    way = np.linalg.norm(changed["before"] - changed["after"], axis=1) / across(changed)
    assert np.median(way[60:]) < 0.06
    assert np.median(way[:60]) > 3 * np.median(way[60:])
    assert changed["after"].shape == (300, 2)
    assert changed["after"].dtype == np.float32


def test_the_map_is_seeded_and_kept(mapped, monkeypatch):
    space, same, _ = mapped
    again = explore._project([space.views[v].titles for v in ("before", "rotated")], 0, 10_000, 15)
    assert (again[1] == same["rotated"]).all()
    monkeypatch.setattr(explore, "_project", None)
    assert (explore.project(space, ["before", "rotated"])["before"] == same["before"]).all()
    with pytest.raises(TypeError):  # anything else would have to be computed
        explore.project(space, ["before", "rotated"], seed=1)


def test_products_beyond_the_fitted_lie_beside_their_nearest(mapped):
    space, _, _ = mapped
    there = explore._project([space.views[v].titles for v in ("before", "rotated")], 0, 200, 15)
    assert there.shape == (2, 300, 2)
    fitted = np.sort(np.random.default_rng(0).choice(300, 100, replace=False))
    alone = explore._project([space.views[v].titles[fitted] for v in ("before", "rotated")], 0, 10_000, 15)
    assert (there[:, fitted] == alone).all()
    way = np.linalg.norm(there[0] - there[1], axis=1) / np.linalg.norm(np.ptp(there.reshape(-1, 2), axis=0))
    assert np.median(way) < 0.03
    _, label = blobs()
    distance = np.linalg.norm(there[0][:, None] - there[0][None], axis=2) + 9e9 * np.eye(300)
    assert (label[distance.argmin(axis=1)] == label).mean() > 0.9


@pytest.mark.parametrize("views", [1, 2, 3])
def test_a_handful_of_products_has_a_map(views):
    rows, _ = blobs(6)
    space = exploration([str(i) for i in range(6)], **{f"view {i}": rows for i in range(views)})
    found = explore.project(space)
    assert len(found) == views
    assert all(there.shape == (6, 2) and np.isfinite(there).all() for there in found.values())


def test_encoders_of_different_width_share_a_map():
    rows, _ = blobs(60)
    space = exploration([str(i) for i in range(60)], narrow=rows[:, :8], wide=rows)
    assert {v.shape for v in explore.project(space).values()} == {(60, 2)}


# --- a study's run


@pytest.fixture(scope="module")
def run(toy, tiny_text, tiny_vision, tmp_path_factory):
    """A run folder with encoders of SimCSE and ConVIRT, and predictions of origin and ConVIRT."""
    out = tmp_path_factory.mktemp("run")
    study = toys.study(tiny_text, tiny_vision, adapt={"batch_size": 30})
    folder = out / "catalogues" / "toy"
    shutil.copytree(toy.folder, folder)
    cat._save("toy", toy.products, cat.Report().frame(), toys.SIZE, 0, folder)
    for method in ("simcse", "convirt"):
        adapted = stage.adapt(method, toy, study, 0, out, progress=False)
        stage.save(adapted, piece(out, "encoders", "toy", method, 0))
    test = toy.part("test")
    for method in ("origin", "convirt"):
        path = piece(out, "predictions", "toy", method, 0).with_suffix(".parquet")
        path.parent.mkdir(parents=True)
        parts = [test[["id", "label"]].assign(fraction=f, predicted=p) for f, p in ((0.2, "rug"), (1.0, test["label"]))]
        pd.concat(parts).sample(frac=1, random_state=0).to_parquet(path)
    return study, out


def test_views_of_a_study(run, toy):
    study, out = run
    space = explore.of_study(study, out, "toy", [("origin", 0), ("simcse", 0), ("convirt", 0)])
    assert list(space.views) == ["origin", "simcse seed 0", "convirt seed 0"]
    assert list(space.products.columns) == ["id", "title", "label", "part", "size", "image_row"]
    assert list(space.products["id"]) == list(toy.products["id"])
    backbone, tokenizer = explore.load_text(str(piece(out, "encoders", "toy", "convirt", 0)))
    expected = explore.Encoder(backbone, tokenizer, study.text)(["alma mug 3"])
    assert space.views["convirt seed 0"].embed(["alma mug 3"]) == pytest.approx(expected)
    near = explore.neighbours(space, "convirt seed 0", 0, 5)
    typed = explore.neighbours(space, "convirt seed 0", space.products["title"][0], 6)
    assert set(near["position"]) <= {*typed["position"]}
    test = (space.products["part"] == "test").to_numpy()
    for name in ("origin", "convirt seed 0"):
        predicted = space.views[name].predicted
        assert list(predicted[test]) == list(space.products["label"][test])
        assert all(p is None for p in predicted[~test])
    assert space.views["simcse seed 0"].predicted is None
    small = explore.of_study(study, out, "toy", [("origin", 0)], "test", fraction=0.2)
    assert set(small.views["origin"].predicted) == {"rug"}
    assert set(small.products["part"]) == {"test"}


def test_embeddings_are_those_of_the_stage_and_are_kept(run, monkeypatch):
    study, out = run
    space = explore.of_study(study, out, "toy", [("simcse", 0)])
    backbone, tokenizer = explore.load_text(str(piece(out, "encoders", "toy", "simcse", 0)))
    expected = stage.embed_titles(backbone, tokenizer, list(space.products["title"]), study.text)
    assert space.views["simcse seed 0"].titles == pytest.approx(expected.numpy(), abs=1e-5)
    files = sorted((out / "explore").iterdir())
    assert files
    assert not [f for f in files if "partial" in f.name]
    monkeypatch.setattr(explore.Encoder, "_embed", None)
    again = explore.of_study(study, out, "toy", [("simcse", 0)])
    assert (again.views["simcse seed 0"].titles == space.views["simcse seed 0"].titles).all()
    files[0].write_bytes(b"torn")
    monkeypatch.undo()
    explore.of_study(study, out, "toy", [("origin", 0), ("simcse", 0), ("convirt", 0)])


def test_other_weights_have_another_key(run, tiny_text):
    study, out = run
    keys = set()
    for folder in (tiny_text, piece(out, "encoders", "toy", "simcse", 0), piece(out, "encoders", "toy", "convirt", 0)):
        for pooling in ("mean", "cls"):
            text = study.text.model_copy(update={"pooling": pooling})
            keys.add(explore.Encoder(*explore.load_text(str(folder)), text).key)
    assert len(keys) == 6


def test_dropout_is_seeded_and_leaves_the_random_state(run):
    study, out = run
    view = explore.of_study(study, out, "toy", [("origin", 0)]).views["origin"]
    titles = ["alma mug 3", "bora 7"]
    before = torch.get_rng_state()
    one, same, other = view.noisy(titles, 0), view.noisy(titles, 0), view.noisy(titles, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert (one == same).all()
    assert (one != other).any()
    assert (view.embed(titles) == view.embed(titles)).all()


def test_the_shared_space_is_what_adaptation_measured(run, toy):
    """title-picture alignment of `adapt.measure` on Dev, from the towers as they were kept."""
    study, out = run
    space = explore.of_study(study, out, "toy", [("convirt", 0), ("simcse", 0)], "dev")
    found = explore.measures(space, "convirt seed 0").set_index(["measure", "part"])["value"]
    kept = pd.read_csv(piece(out, "encoders", "toy", "convirt", 0) / "space.csv").set_index(["measure", "when"])[
        "value"
    ]
    assert found["title-picture alignment", "all"] == pytest.approx(kept["title-picture alignment", "after"], abs=1e-4)
    assert found["uniformity", "all"] == pytest.approx(kept["title uniformity", "after"], abs=1e-4)
    assert space.views["simcse seed 0"].shared is None
    assert len(explore.pictures_of(space, "convirt seed 0", "alma mug", 3)) == 3
    assert space.views["convirt seed 0"].shared is space.views["convirt seed 0"].shared


def test_over_study_asks_every_view(run):
    study, out = run
    table = explore.over_study(explore.measures, study, out, "toy", ["origin", "convirt"])
    assert list(table.columns) == ["dataset", "method", "seed", "measure", "part", "value", "n"]
    assert list(table.drop_duplicates("method")["method"]) == ["origin", "convirt"]
    table = explore.over_seeds(explore.over_study(explore.recall, study, out, "toy", ["convirt"]), "recall")
    assert list(table.columns) == [
        "dataset",
        "method",
        "direction",
        "k",
        "chance",
        "n",
        "seeds",
        "recall",
        "low",
        "high",
    ]
    assert (table["n"] <= 15).all()


def test_a_sample_is_seeded(run):
    study, out = run
    one, two = (explore.of_study(study, out, "toy", [("origin", 0)], most=20).products for _ in range(2))
    assert one.equals(two)
    assert len(one) == 20
    assert list(one["id"]) == sorted(one["id"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "tooy"}, "no dataset 'tooy'; did you mean 'toy'"),
        ({"views": [("convrit", 0)]}, "no method 'convrit'; did you mean 'convirt'"),
        ({"views": [("tfidf", 0)]}, "'tfidf' has no encoder"),
        ({"views": [("convirt", 7)]}, "no encoder of convirt seed 7; run notebook 02"),
        ({"views": [("origin", 0), ("origin", 1)]}, "view 'origin' is asked for twice"),
        ({"fraction": 0.5}, "no predictions at fraction 0.5; known: 0.2, 1.0"),
    ],
)
def test_a_study_that_cannot_be_explored(run, options, message):
    study, out = run
    with pytest.raises(ExploreError, match=message):
        explore.of_study(study, out, **{"dataset": "toy", "views": [("origin", 0)]} | options)


def test_an_encoder_adapted_before_towers_were_kept(run, tmp_path):
    study, out = run
    shutil.copytree(out, tmp_path / "run")
    (piece(tmp_path / "run", "encoders", "toy", "convirt", 0) / "towers.safetensors").unlink()
    space = explore.of_study(study, tmp_path / "run", "toy", [("convirt", 0)])
    assert len(explore.neighbours(space, "convirt seed 0", 0)) == 10
    with pytest.raises(ModelError, match=r"towers.safetensors: no such file.*run the adaptation again"):
        explore.pictures_of(space, "convirt seed 0", "mug")


# --- any table, any encoder


def png(colour):
    data = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(data, "PNG")
    return data.getvalue()


def test_a_table_and_an_encoder_that_are_not_ours(tiny_text, tmp_path):
    (tmp_path / "red.png").write_bytes(png("red"))
    table = pd.DataFrame(
        {
            "Name": ["alma mug 1", "  ", "bora rug", None, "alma mug 1", "cira lamp"],
            "Kind": ["mug", "mug", "rug", "rug", "mug", None],
            "image": ["red.png", "red.png", png("blue"), None, "gone.png", "red.png"],
        },
        index=list("uvwxyz"),
    )
    space = explore.of_table(table, str(tiny_text), title="Name", label="Kind", image_folder=tmp_path, max_tokens=8)
    products = space.products
    assert list(products["id"]) == ["u", "w", "y", "z"]
    assert list(products["label"]) == ["mug", "rug", "mug", ""]
    assert list(products["size"]) == ["head", "head", "head", ""]
    assert products["image_row"].tolist() == [0, 1, -1, 0]
    assert space.notes[0] == "2 of 6 rows have no title and were dropped"
    assert space.notes[1].startswith("1 products have a picture that cannot be read (e.g. picture missing")
    thumbnails = space.thumbnails(side=8)
    assert thumbnails.shape == (4, 8, 8, 3)
    assert [tuple(t[4, 4]) for t in thumbnails] == [(255, 0, 0), (0, 0, 255), (255, 255, 255), (255, 0, 0)]
    found = explore.neighbours(space, "encoder", 0, 1)
    assert found["position"].tolist() == [2]
    assert found["similarity"][0] == pytest.approx(1, abs=2e-6)
    folder = space.images.path.parent
    assert folder.is_dir()
    del space
    assert not folder.exists()


def test_two_encoders_and_a_cache(tiny_text, tmp_path):
    other = toys.save_text(tmp_path / "other", hidden_size=48)
    table = pd.DataFrame({"title": [f"alma mug {i}" for i in range(30)], "image": [png("red")] * 30})
    encoders = {"before": str(tiny_text), "after": str(other)}
    space = explore.of_table(table, encoders, cache=tmp_path / "cache")
    assert [v.titles.shape for v in space.views.values()] == [(30, 32), (30, 48)]
    assert len(space.images) == 1
    assert space.products["label"].tolist() == [""] * 30
    assert set(explore.moved(space, "before", "after")["kept"] * 10 % 1) == {0}
    assert "label agreement" not in set(explore.measures(space, "before")["measure"])
    again = explore.of_table(table, encoders, cache=tmp_path / "cache")
    assert (again.views["after"].titles == space.views["after"].titles).all()
    assert again.images.path == space.images.path


def table_pictures(references, cache, folder=".", size=8):
    return explore._table_pictures(pd.Series(references, dtype=object), Path(folder), size, cache, "catalogue", [])


def test_two_tables_share_no_file_of_pictures(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(png("red" if folder == "here" else "blue"))
    cache, colours = tmp_path / "cache", ["red", "lime", "blue"]
    rows, images = table_pictures([png(colour) for colour in colours], cache)
    before, inode = images[rows], images.path.stat().st_ino
    others = [
        table_pictures([png("blue")], cache)[1],
        table_pictures([png(colour) for colour in colours], cache, size=9)[1],
        table_pictures(["a.png"], cache, tmp_path / "here")[1],
        table_pictures(["a.png"], cache, tmp_path / "there")[1],
    ]
    assert len({store.path for store in (images, *others)}) == 5
    assert (images[rows] == before).all()
    assert [tuple(store[[0]][0, 4, 4]) for store in others] == [(0, 0, 255), (255, 0, 0), (255, 0, 0), (0, 0, 255)]
    again = table_pictures([png(colour) for colour in colours], cache)[1]
    assert (again.path, again.path.stat().st_ino) == (images.path, inode)


def test_the_second_of_two_notebooks_waits_for_the_pictures(tmp_path, monkeypatch):
    names, read = [f"{i}.png" for i in range(12)], []
    for name in names:
        (tmp_path / name).write_bytes(png("red"))

    def slow(path):
        read.append(path.name)
        time.sleep(0.05)
        return path.read_bytes()

    monkeypatch.setattr(explore, "read_bytes", slow)
    with ThreadPoolExecutor(2) as notebooks:
        waiting = [notebooks.submit(table_pictures, names, tmp_path / "cache", tmp_path) for _ in range(2)]
        (rows, images), (same, others) = (result.result() for result in waiting)
    assert rows.tolist() == same.tolist() == list(range(12))
    assert (images[rows] == others[rows]).all()
    assert sorted(read) == sorted(names)  # once each


def test_pictures_are_stored_where_no_file_can_be_locked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    rows, images = table_pictures([png("red")], tmp_path)
    assert (rows.tolist(), len(images)) == ([0], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title": "titel"}, r"no column 'titel' \(title\); did you mean 'title'"),
        ({"label": "clas"}, r"no column 'clas' \(label\); did you mean 'class'"),
        ({"encoders": {}}, "no encoder is named"),
        ({"table": pd.DataFrame({"title": ["", None]})}, r"no product has a title in column 'title' \(2 rows\)"),
    ],
)
def test_a_table_that_cannot_be_explored(tiny_text, options, message):
    table = pd.DataFrame({"title": ["alma mug"], "class": ["mug"]})
    with pytest.raises(ExploreError, match=message):
        explore.of_table(**{"table": table, "encoders": str(tiny_text)} | options)


def test_questions_that_cannot_be_answered():
    space = exploration("abc", before=unit([0, 1, 2]), after=unit([0, 1, 2]))
    for question, message in (
        (lambda: explore.neighbours(space, "befor", 0), "no view 'befor'; did you mean 'before'"),
        (lambda: explore.neighbours(space, "before", 3), "position 3: expected 0 to 2"),
        (lambda: explore.neighbours(space, "before", "  "), "the title is empty"),
        (lambda: explore.neighbours(space, "before", 0, k=0), "k is 0"),
        (lambda: explore.moved(space, "before", "after", k=0), "k is 0"),
        (lambda: explore.neighbours(exploration("a", before=unit([0])), "before", 0), "has 1 products; at least 2"),
        (lambda: explore.moved(space, "before", "before"), "compared with itself"),
        (lambda: explore.project(space), "has 3 products; at least 5 are needed"),
        (lambda: explore.confusions(space, "before", "after"), "'before' has no predictions"),
    ):
        with pytest.raises(ExploreError, match=message):
            question()
