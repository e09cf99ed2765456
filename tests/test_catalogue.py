"""Split, subsets, head and tail by their definitions; every fault of a catalogue counted; the same bytes again."""

import itertools
import json
import os
import resource
import string
from collections import Counter

import pandas as pd
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import flip

from icssl_lib.catalogue import (
    PARTS,
    head_tail,
    ingest,
    masked,
    normalise_title,
    open_catalogue,
    split,
    split_hash,
    train_subset,
)
from icssl_lib.config import TableSource
from icssl_lib.sources.raw import CatalogueError


def products(titles: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"p{i:04d}" for i in range(len(titles))], "title": titles, "label": "lamp"})


SAME = [("Red Lamp", "  red   LAMP "), ("Red-Lamp!", "red lamp"), ("Straße", "STRASSE"), ("ﬁne ＬＡＭＰ", "fine lamp")]
SAME += [("Caf\u00e9", "cafe\u0301"), ("red\u00a0lamp", "red\tlamp"), ("red\u200b lamp", "red lamp")]
OTHER = [("lamp 5", "lamp 6"), ("C", "C++"), ("café", "cafe"), ("红", "蓝")]


@pytest.mark.parametrize(("one", "other", "same"), [*((*p, True) for p in SAME), *((*p, False) for p in OTHER)])
def test_titles_that_are_the_same_and_titles_that_differ(one, other, same):
    assert (normalise_title(one) == normalise_title(other)) == same


@given(st.text())
@settings(max_examples=50)
def test_normalising_twice_is_normalising_once(title):
    assert normalise_title(normalise_title(title)) == normalise_title(title)


many_titles = st.lists(st.text("ab AB!", max_size=4), min_size=40, max_size=300).map(
    lambda titles: titles + [f"filler {i}" for i in range(60)]
)


@given(many_titles, st.integers(0, 9), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_same_title_never_straddles_parts_shares_hold_and_rows_may_come_in_any_order(titles, seed, shuffle):
    frame = products(titles)
    part = split(frame, seed)
    groups = frame["title"].map(normalise_title)
    assert (part.groupby(groups).nunique() == 1).all()
    largest = groups.value_counts().iloc[0]
    for name, share in PARTS.items():
        excess = (part == name).sum() - len(frame) * share / 100
        assert -3 * largest <= excess <= largest
    moved = frame.iloc[shuffle.sample(range(len(frame)), len(frame))]
    assert part.equals(split(moved, seed).sort_index())
    assert train_subset(frame, 0.3, seed).equals(train_subset(moved, 0.3, seed))


def test_split_is_the_same_everywhere():
    frame = products([f"Lamp {i}" for i in range(1000)])
    frame["part"] = split(frame, 0)
    assert frame["part"].value_counts().to_dict() == {"ssl": 500, "train": 300, "dev": 100, "test": 100}
    assert split_hash(frame) == "0035cfae2d3da313"
    assert split_hash(frame.sample(frac=1, random_state=0)) == "0035cfae2d3da313"
    frame.loc[0, "part"] = "dev" if frame.loc[0, "part"] == "ssl" else "ssl"
    assert split_hash(frame) != "0035cfae2d3da313"
    assert not split(frame, 0).equals(split(frame, 1))


@given(many_titles, st.integers(0, 9), st.integers(0, 100), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_products_without_a_label_adapt_and_leave_the_others_more_labels(titles, seed, percent, draw):
    frame = products(titles)
    frame["label"] = ["" if draw.randrange(100) < percent else "lamp" for _ in titles]
    frame.loc[frame.index[-30:], "label"] = "lamp"  # some have one
    groups, bare = frame["title"].map(normalise_title), frame["label"] == ""
    part = split(frame, seed)
    assert (part.groupby(groups).nunique() == 1).all()
    own = bare & ~groups.isin(groups[~bare])
    assert (part[own] == "ssl").all()
    counted = part[~bare].value_counts().reindex(list(PARTS), fill_value=0)
    largest = int(groups[~bare].value_counts().iloc[0])
    adapting = max(0, ((~bare).sum() + own.sum()) / 2 - own.sum())
    assert counted["ssl"] == pytest.approx(adapting, abs=3 * largest)
    for name in ("train", "dev", "test"):  # what is left, at 30:10:10
        assert counted[name] == pytest.approx(((~bare).sum() - adapting) * PARTS[name] / 50, abs=3 * largest)


def test_a_tiny_catalogue_is_refused():
    for titles in (["a", "b", "c", "d"], ["same"] * 100, []):
        with pytest.raises(CatalogueError, match="too few to split"):
            split(products(titles), 0)
    assert set(split(products(list("abcde")), 0)) == set(PARTS)


@given(st.integers(1, 200), st.integers(0, 5))
@settings(max_examples=30)
def test_subsets_are_nested_prefixes(n, seed):
    train = products([""] * n)
    subsets = [train_subset(train, f, seed)["id"].tolist() for f in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)]
    assert [len(s) for s in subsets] == [-(-n * percent // 100) for percent in (5, 10, 25, 50, 75, 100)]
    assert all(large[: len(small)] == small for small, large in itertools.pairwise(subsets))
    assert sorted(subsets[-1]) == train["id"].tolist()


def test_subset_size_is_free_of_rounding_errors_and_at_least_one():
    train = products([""] * 100)
    assert all(len(train_subset(train, percent / 100, 0)) == percent for percent in range(1, 101))
    assert len(train_subset(train, 1e-9, 0)) == 1
    assert train_subset(train, 0.5, 0)["id"].tolist() != train_subset(train, 0.5, 1)["id"].tolist()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.sampled_from([0.5, 0.8, 1.0]))
def test_head_is_the_smallest_set_that_holds_the_share(sizes, share):
    counts = pd.Series(sizes, index=list(string.ascii_lowercase[: len(sizes)]))
    head, tail = head_tail(counts, share)
    assert sorted(head + tail) == counts.index.tolist()
    needed = round(share * 10) * sum(sizes)  # in tenths of instances: integers
    enough = [k for k in range(len(sizes) + 1) for c in itertools.combinations(sizes, k) if 10 * sum(c) >= needed]
    assert len(head) == min(enough)
    assert 10 * counts[head].sum() >= needed
    assert set(counts.index[counts == 0]) <= set(tail)


def test_head_and_tail_by_hand():
    counts = pd.Series({"z": 4, "a": 4, "b": 1, "c": 1, "absent": 0})
    assert head_tail(counts) == (["a", "z"], ["b", "c", "absent"])  # 8 of 10 is 80 %, no more is needed
    assert head_tail(pd.Series({"a": 55, "b": 45}), 0.55) == (["a"], ["b"])  # 0.55 * 100 > 55 in floats
    assert head_tail(pd.Series({"b": 1, "a": 1})) == (["a", "b"], [])
    assert head_tail(pd.Series({"a": 0})) == ([], ["a"])


def write_shop(folder, n=40) -> pd.DataFrame:
    """A sound catalogue of n products of 4 classes, one picture each."""
    (folder / "pictures").mkdir(exist_ok=True)
    rows = [[f"p{i:02d}", f"Lamp number {i}", f"class {i % 4}", f"{i:02d}.png"] for i in range(n)]
    for i, row in enumerate(rows):
        Image.new("RGB", (30, 20), (i, 0, 0)).save(folder / "pictures" / row[-1])
    return pd.DataFrame(rows, columns=["id", "title", "label", "image"])


def run(folder, frame, size=16, **options):
    frame.to_csv(folder / "products.csv", index=False)
    options = {"id": "id", "image_folder": folder / "pictures", **options}
    source = TableSource(source="table", table=folder / "products.csv", **options)
    return ingest("shop", source, size, 0, folder / "out", progress=False)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def counted(report: pd.DataFrame) -> dict[tuple[str, str], int]:
    return report.set_index(["reason", "action"])["count"].to_dict()


FAULTY = [
    ["b01", "Corrupt picture", "class 0", "corrupt.jpg"],
    ["b02", "Huge picture", "class 0", "huge.png"],
    ["b03", "Missing picture", "class 0", "none.png"],
    ["b04", "No picture named", "class 0", ""],
    ["b05", " \u200b\t", "class 0", "00.png"],
    ["b06", "Empty label", "", "00.png"],
    ["p00", "Duplicated id", "class 0", "01.png"],
    ["p00", "Duplicated id again", "class 0", "01.png"],
    ["b07", "Climbing path", "class 0", "../../etc/passwd"],
    ["b08", "Absolute path", "class 0", "/etc/passwd"],
    ["b09", "Link out", "class 0", "link.png"],
    ["", "Empty id", "class 0", "00.png"],
    ["b10", "Only one of its class", "rare", "00.png"],
    ["b11", "Bell\x07 and\nbreak", "class 0", "01.png"],
]
FAULTS = {
    ("empty id", "dropped"): 1,
    ("empty title", "dropped"): 1,
    ("empty label", "kept"): 1,
    ("duplicated id", "dropped"): 2,
    ("zero-width characters in title", "repaired"): 1,
    ("control characters in title", "repaired"): 1,
    ("picture corrupt", "dropped"): 1,
    ("picture too large", "dropped"): 1,
    ("picture missing", "dropped"): 2,
    ("picture outside the folder", "dropped"): 3,
    ("only product of its class", "kept"): 1,
}
NOTHING_LEFT = [
    ({"image": "none.png"}, r"0 products .* are left; .* \(40 rows; 40 dropped: picture missing .*none\.png"),
    ({"title": " "}, r"0 products .* are left; .* \(40 rows; 40 dropped: empty title"),
    ({"label": "lamp"}, "40 products with 1 different labels are left; there is nothing to categorize"),
    ({"label": ""}, "40 products with 0 different labels are left; there is nothing to categorize"),
    ({"title": "Lamp"}, "40 labelled products with 1 different titles are too few to split"),
]


def bad_rows(folder) -> pd.DataFrame:
    """The sound catalogue and one row, or more, of each fault."""
    frame, pictures = write_shop(folder), folder / "pictures"
    Image.effect_noise((64, 64), 90).convert("RGB").save(pictures / "whole.jpg")
    (pictures / "corrupt.jpg").write_bytes((pictures / "whole.jpg").read_bytes()[:900])
    (pictures / "huge.png").write_bytes(toys.huge_png(30_000))
    (folder / "secret.png").write_bytes((pictures / "00.png").read_bytes())
    os.symlink(folder / "secret.png", pictures / "link.png")
    return pd.concat([frame, pd.DataFrame(FAULTY, columns=frame.columns)], ignore_index=True)


def test_each_fault_is_counted_with_an_example(tmp_path):
    catalogue = run(tmp_path, bad_rows(tmp_path))
    assert counted(catalogue.report) == FAULTS
    assert catalogue.report.columns.tolist() == ["reason", "action", "count", "example"]
    examples = catalogue.report.set_index("reason")["example"]
    assert examples["picture outside the folder"] == "b07: picture outside the folder: '../../etc/passwd'"
    assert examples["duplicated id"] == "p00: Duplicated id"
    left = catalogue.products.set_index("id")
    assert sorted(left.index) == sorted([f"p{i:02d}" for i in range(40)] + ["b06", "b10", "b11"])
    assert left.loc["b06", ["label", "part"]].tolist() == ["", "ssl"]
    assert left.loc["p00", "title"] == "Lamp number 0"
    assert left.loc["b11", "title"] == "Bell and break"


def test_texts_are_brought_to_one_form_and_counted(tmp_path):
    frame = write_shop(tmp_path)
    frame.loc[:1, "title"] = ["zero\u200bwidth \u200fmark", "Salt &amp; pepper &#39;n&#39; AT&T &mug"]
    frame.loc[2, "title"] = "soft\xad\u061c\u3164hyphen"
    report = {
        ("HTML entities in title", "kept"): (1, "p01: Salt &amp; pepper &#39;n&#39; AT&T &mug"),
        ("zero-width characters in title", "repaired"): (2, "p00: zero\u200bwidth \u200fmark"),
    }
    catalogue = run(tmp_path, frame)
    rows = catalogue.report.set_index(["reason", "action"])[["count", "example"]].apply(tuple, axis=1).to_dict()
    assert report.items() <= rows.items()
    left = catalogue.products.set_index("id")
    assert left.loc[["p00", "p02"], "title"].tolist() == ["zerowidth mark", "softhyphen"]
    catalogue = run(tmp_path, frame, unescape=True)
    assert catalogue.products.set_index("id").loc["p01", "title"] == "Salt & pepper 'n' AT&T &mug"


def test_a_table_may_bring_its_own_parts(tmp_path):
    frame = write_shop(tmp_path)
    frame["fold"] = ["ssl", "train", "dev", "test"] * 10
    frame.loc[:1, "title"] = "The same title"
    catalogue = run(tmp_path, frame, part="fold")
    assert catalogue.products["part"].tolist() == frame["fold"].tolist()
    assert counted(catalogue.report) == {("title that stands in another part too", "kept"): 1}
    for bad, message in {"val": "1 products of another part .*'val'", "dev": "no product is of the part test"}.items():
        frame["fold"] = ["ssl", "train", "dev", "dev"] * 9 + ["ssl", "train", "dev", bad]
        with pytest.raises(CatalogueError, match=message):
            run(tmp_path, frame, part="fold")
    frame["fold"] = ["ssl", "train", "dev", "test"] * 10
    with pytest.raises(CatalogueError, match=r"no product is of the part test; .*10 dropped: empty label, and of an"):
        run(tmp_path, frame.assign(label=frame["label"].where(frame["fold"] != "test")), part="fold")


def test_products_without_picture_are_kept_on_demand_and_small_classes_dropped(tmp_path):
    catalogue = run(tmp_path, bad_rows(tmp_path), missing_image="keep", min_class_size=2)
    expected = {(why, "kept" if why.startswith("picture") else action): n for (why, action), n in FAULTS.items()}
    del expected["only product of its class", "kept"]
    assert counted(catalogue.report) == expected | {("class of fewer than 2 products", "dropped"): 1}
    without = catalogue.products[catalogue.products["image_row"] < 0]
    assert without["id"].tolist() == ["b01", "b02", "b03", "b04", "b07", "b08", "b09"]
    assert (without["image_row"] == -1).all()


def test_catalogue_is_stored_and_opened(tmp_path):
    frame = write_shop(tmp_path)
    made = run(tmp_path, frame.sample(frac=1, random_state=0))
    catalogue = open_catalogue(tmp_path / "out")
    assert sorted(contents(tmp_path)) == [
        "SHA256SUMS",
        "catalogue.json",
        "images.npy",
        "products.parquet",
        "report.csv",
    ]
    table = catalogue.products
    assert table.columns.tolist() == ["id", "title", "label", "image_row", "part"]
    assert table["id"].tolist() == frame["id"].tolist()  # sorted
    assert table.equals(made.products)
    assert catalogue.name == "shop"
    assert catalogue.report.empty
    assert catalogue.split_hash == made.split_hash == split_hash(table)
    sizes = {part: len(catalogue.part(part)) for part in PARTS}
    assert sizes == {"ssl": 20, "train": 12, "dev": 4, "test": 4}
    pictures = {"name": "shop", "split_hash": made.split_hash, "pictures": 40}
    assert json.loads((tmp_path / "out" / "catalogue.json").read_text()) == pictures
    rows = catalogue.part("train")
    assert rows.index.tolist() == list(range(12))
    pixels = catalogue.images[rows["image_row"]]
    assert pixels.shape == (12, 16, 16, 3)
    assert pixels[:, 8, 8, 0].tolist() == [int(i[1:]) for i in rows["id"]]  # each its own picture
    assert catalogue.handed == {"ssl": 1, "train": 2, "dev": 1, "test": 1}
    with pytest.raises(ValueError, match="part 'valid'"):
        catalogue.part("valid")


def test_labels_are_those_of_train_alone(tmp_path):
    catalogue = run(tmp_path, write_shop(tmp_path))
    expected = Counter(catalogue.part("train")["label"])
    assert catalogue.labels == sorted(expected)
    assert list(catalogue.label_counts.items()) == sorted(expected.items(), key=lambda item: (-item[1], item[0]))
    table = catalogue.products
    table.loc[table["part"] != "train", "label"] = "never read"
    table.to_parquet(tmp_path / "out" / "products.parquet")
    (tmp_path / "out" / "SHA256SUMS").unlink()
    assert open_catalogue(tmp_path / "out").label_counts.equals(catalogue.label_counts)


def test_a_shop_that_has_labelled_few_products_adapts_with_all(tmp_path):
    """Of 40 products 10 have no label: they are half of the SSL part, so of the others 10 are in it, not 15."""
    frame = write_shop(tmp_path)
    frame.loc[frame.index[::4], "label"] = " "
    frame.loc[4, "title"] = "LAMP number 1!"  # of a product with a label: one title would stand in two parts
    catalogue = run(tmp_path, frame)
    table, labelled = catalogue.products, catalogue.products["label"] != ""
    with_that_title = table.loc[table["id"] == "p01", "part"].item()
    assert ("p04" in set(table["id"])) == (with_that_title == "ssl")
    expected = {("empty label", "kept"): 10}
    if with_that_title != "ssl":
        expected["empty label, and of another part than ssl", "dropped"] = 1
    assert counted(catalogue.report) == expected
    assert (table[~labelled]["part"] == "ssl").all()
    assert (table[~labelled]["image_row"] >= 0).all()
    assert table[labelled]["part"].value_counts().to_dict() == {"train": 12, "ssl": 10, "dev": 4, "test": 4}
    assert catalogue.labels == ["class 1", "class 2", "class 3"]

    dropped = run(tmp_path, frame, unlabelled="drop")
    assert counted(dropped.report) == {("empty label", "dropped"): 10}
    assert dropped.products["part"].value_counts().to_dict() == {"ssl": 15, "train": 9, "dev": 3, "test": 3}


def test_pictures_may_be_shared_or_absent(tmp_path):
    frame = write_shop(tmp_path)
    shared = run(tmp_path, frame.assign(image=["00.png", "01.png"] * 20))
    assert len(shared.images) == 2
    assert shared.products["image_row"].tolist() == [0, 1] * 20
    without = run(tmp_path, frame.drop(columns="image"), image=None)
    assert without.images is None
    assert without.products["image_row"].tolist() == [-1] * 40
    assert without.report.empty


@pytest.mark.parametrize("step", ["write_store", "split", "split_hash"])
def test_interrupted_or_whole_an_earlier_ingest_changes_no_byte_of_the_next(step, tmp_path, monkeypatch):
    frame = write_shop(tmp_path)
    run(tmp_path, frame)
    undisturbed = contents(tmp_path)
    assert len(run(tmp_path, frame.iloc[:30]).images) == 30

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"icssl_lib.catalogue.{step}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, frame)
    with pytest.raises(CatalogueError, match="no whole catalogue"):
        open_catalogue(tmp_path / "out")
    run(tmp_path, frame.iloc[::-1])
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize(("changes", "message"), NOTHING_LEFT)
def test_when_everything_is_dropped_the_error_says_why(changes, message, tmp_path):
    with pytest.raises(CatalogueError, match=f"dataset shop: {message}"):
        run(tmp_path, write_shop(tmp_path).assign(**changes))


def test_absent_incomplete_and_damaged_catalogues_are_named(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CatalogueError, match=r"no whole catalogue .*catalogue\.json.*make study"):
        open_catalogue(out)
    run(tmp_path, write_shop(tmp_path))
    (out / "SHA256SUMS").unlink()  # of an earlier edition, or an own one
    for name, data in contents(tmp_path).items():
        (out / name).unlink()
        with pytest.raises(CatalogueError, match=f"no whole catalogue .*{name}"):
            open_catalogue(out)
        if name != "report.csv":
            (out / name).write_bytes(data[: len(data) // 2])
            with pytest.raises(CatalogueError, match="no whole catalogue"):
                open_catalogue(out)
        (out / name).write_bytes(data)
    other = open_catalogue(out).products
    other["part"] = other["part"].to_numpy()[::-1]
    other.to_parquet(out / "products.parquet")
    with pytest.raises(CatalogueError, match="do not match"):
        open_catalogue(out)


@pytest.mark.filterwarnings("ignore:.* is not as it was written")  # then comes the error
def test_a_flipped_bit_of_a_catalogue_is_found_when_it_is_read(tmp_path):
    run(tmp_path, write_shop(tmp_path))
    out = tmp_path / "out"
    for name in ("products.parquet", "report.csv"):
        flip(out / name)
        with pytest.raises(CatalogueError, match=f"no whole catalogue .*{name} is not as it was written"):
            open_catalogue(out)
        flip(out / name)
    flip(out / "images.npy")
    catalogue = open_catalogue(out)  # a store of gigabytes is read by those that need all of it
    with pytest.raises(CatalogueError, match=r"images\.npy is not as it was written; delete its folder"):
        catalogue.checked_images()
    flip(out / "images.npy")
    assert (open_catalogue(out).checked_images() == catalogue.images).all()
    (out / "images.npy").write_bytes(b"")
    with pytest.raises(CatalogueError, match="no whole catalogue"):
        open_catalogue(out)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    frame = write_shop(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the next byte fails as on a full disk
    try:
        with pytest.raises(CatalogueError, match="cannot store the catalogue: File too large"):
            run(tmp_path, frame, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not contents(tmp_path)


def test_class_words_are_masked_by_share_and_the_split_stays(tmp_path):
    titles = [f"Mugs, red thing {k}" if k % 2 else f"great LAMP lamp{k} tee" for k in range(200)]
    labels = ["Coffee mug" if k % 2 else "Lamps" for k in range(200)]
    table = pd.DataFrame({"id": [f"{k:03d}" for k in range(200)], "title": titles, "label": labels})
    found = {}
    for share in (0.0, 0.3, 0.6, 1.0):
        (tmp_path / str(share) / "pictures").mkdir(parents=True)
        source = {"mask_class_words": share, "class_words": ["Tee"]}
        found[share] = run(tmp_path / str(share), table, image=None, **source)
    split = {catalogue.split_hash for catalogue in found.values()}
    assert len(split) == 1
    none, whole = (found[share].products.set_index("id").title for share in (0.0, 1.0))
    assert list(none.sort_index()) == [titles[int(k)] for k in none.sort_index().index]
    assert set(whole.str.replace(r"\d+", "", regex=True)) == {"red thing ", "great lamp"}  # lamp7 is another word
    counts = []
    for smaller, larger in ((0.3, 0.6), (0.6, 1.0)):
        few, many = (found[share].products.title.str.split().map(set) for share in (smaller, larger))
        assert all(kept <= before for kept, before in zip(many, few, strict=True))  # nested
        counts.append(found[smaller].products.title.str.contains("Mugs").mean() / 0.5)
    assert counts == pytest.approx([0.7, 0.4], abs=0.12)
    report = found[0.3].report.set_index("action")
    assert report.loc["masked", "reason"] == "class words in title"
    bare = pd.DataFrame({"id": ["1", "2"], "title": ["Mugs", "Coffee mug XL"]})
    assert list(masked(bare, ["coffee mug"], 1.0)) == ["-", "XL"]
