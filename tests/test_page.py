"""The static map: its data and pictures read back from the file, and what it does in a real browser, offline."""

import base64
import hashlib
import io
import json
import re
import time
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from icssl_lib import page

N, K, SIDE = 400, 5, 32
CLASSES = {"mug": (200, 30, 30), "lamp": (30, 160, 30), "rug": (30, 30, 200)}
HOSTILE = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "<!-- <script> \"double\" 'single' & \\ \u2028 ]]>",
    "مصباح 'مكتب' אור",
    "🧴👩🏽‍🚀 emoji e\u0301clair",
    "javascript:alert(1) {{ data }} ${N}",
]


def products() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    label = rng.choice(list(CLASSES), N, p=[0.5, 0.3, 0.2])
    brand = rng.choice(["Alma", "Börk"], N)
    title = [f"{brand[i]} {label[i]} {i:03d}" for i in range(N)]
    frame = pd.DataFrame({"id": [f"p{i:03d}" for i in range(N)], "title": title, "label": label})
    frame.loc[: len(HOSTILE) - 1, "title"] = HOSTILE
    frame["size"] = np.where(label == "rug", "tail", "head")
    frame["part"] = np.where(np.arange(N) % 10 == 0, "test", "train")
    frame["price"] = np.arange(N) / 4
    frame["image_row"] = np.where(np.arange(N) < N - 20, rng.permutation(N), -1)
    return frame


PRODUCTS = products()
_RNG = np.random.default_rng(2)
_CENTRE = PRODUCTS["label"].map({"mug": 0.0, "lamp": 4.0, "rug": 8.0}).to_numpy()
POSITIONS = {
    "before": _RNG.uniform(-2, 10, (N, 2)),
    "after": np.c_[_CENTRE, _CENTRE / 2] + _RNG.normal(0, 0.6, (N, 2)),
}
NEIGHBOURS = {
    view: np.argsort(((xy[:, None] - xy) ** 2).sum(2) + 1e9 * np.eye(N), axis=1)[:, :K]
    for view, xy in POSITIONS.items()
}
_TEST = PRODUCTS["part"] == "test"
PREDICTED = {"before": np.where(_TEST, "mug", None), "after": PRODUCTS["label"].where(_TEST, None)}


def pictures() -> np.ndarray:
    """One colour each: the class's, and a little of the product's number."""
    pixels = np.zeros((N, SIDE, SIDE, 3), np.uint8)
    have = PRODUCTS["image_row"] >= 0
    pixels[PRODUCTS["image_row"][have]] = np.array([CLASSES[name] for name in PRODUCTS["label"][have]])[:, None, None]
    return pixels


def write(path: Path, **changed: object) -> Path:
    given = {
        "products": PRODUCTS,
        "positions": POSITIONS,
        "colours": {"Price": "price"},
        "thumbnails": pictures(),
        "predicted": PREDICTED,
        "neighbours": NEIGHBOURS,
        "caption": "Notice <b>that</b> classes draw together.",
    }
    return page.write_map(path, "Toys & <i>others</i>", **(given | changed))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    Image.new("RGB", (30, 20), "red").save(folder / "twin.png")
    return write(folder / "deep" / "map.html", twin=folder / "twin.png")


@pytest.fixture(scope="module")
def chromium():
    with browser.started() as running:
        yield running


@pytest.fixture
def shown(chromium, path):
    """The page at 1280 x 900, light."""
    with browser.opened(chromium, path.as_uri()) as opened:
        ready(opened)
        yield opened


# ---- reading the file


def scripts(path: Path) -> dict[str, str]:
    """Script elements by id; the one that runs has none."""
    found = re.findall(r'<script(?: type="[^"]+" id="([^"]+)")?>(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    return dict(found)


def read(path: Path) -> dict:
    return json.loads(scripts(path)["data"])


def unpack(packed: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), f"<u{packed['bytes']}").astype(int) - 1


def order_of(data: dict) -> np.ndarray:
    """The row of PRODUCTS of each product in the page."""
    return np.array([int(key[1:]) for key in data["ids"]])


def test_positions_and_neighbours_are_those_given(path):
    data = read(path)
    order = order_of(data)
    assert sorted(order) == list(range(N))
    assert (order != np.arange(N)).any()  # shuffled, so that no class lies on top
    assert data["titles"] == PRODUCTS["title"].iloc[order].tolist()
    everything = np.concatenate(list(POSITIONS.values()))
    span = np.ptp(everything, axis=0).max()
    middle = (everything.max(axis=0) + everything.min(axis=0)) / 2
    for entry in data["views"]:
        unit = unpack(entry["positions"]).reshape(N, 2) / 65534
        assert unit.min() >= 0
        assert unit.max() <= 1
        back = (unit * [1, -1] + [-0.5, 0.5]) * span + middle
        np.testing.assert_allclose(back, POSITIONS[entry["name"]][order], atol=span / 65534)
        near = order[unpack(entry["neighbours"]).reshape(N, K)]
        np.testing.assert_array_equal(near, NEIGHBOURS[entry["name"]][order])


def test_menu_begins_with_what_is_known_and_adds_the_callers(path):
    data = read(path)
    order = order_of(data)
    menu = {entry["name"]: entry for entry in data["colours"]}
    assert list(menu) == ["Class", "Right or wrong", "Head or tail", "Distance moved, of the map's width",
                          "Neighbours that changed", "Price"]  # fmt: skip
    assert menu["Class"]["names"] == PRODUCTS["label"].value_counts().index.tolist()  # most frequent first
    labels = np.array(menu["Class"]["names"])[unpack(menu["Class"]["codes"][0])]
    assert labels.tolist() == PRODUCTS["label"].iloc[order].tolist()
    before, after = (unpack(codes) for codes in menu["Right or wrong"]["codes"])
    test = (PRODUCTS["part"] == "test").to_numpy()[order]
    assert (before[~test] == -1).all()
    assert (after[test] == 0).all()  # right
    assert (before[test] == (PRODUCTS["label"] != "mug").to_numpy()[order][test]).all()
    assert (menu["Price"]["low"], menu["Price"]["high"]) == (0, (N - 1) / 4)
    assert np.abs(unpack(menu["Price"]["codes"][0]) - order / (N - 1) * 254).max() <= 0.5


def test_changed_counts_neighbours_that_left():
    before = np.array([[1, 2, 3], [0, 2, -1], [4, 5, 6], [-1, -1, -1]])
    after = np.array([[3, 1, 9], [2, 0, -1], [7, 8, 9], [1, 2, 3]])
    assert page._changed(before, after).tolist() == pytest.approx([1 / 3, 0, 1, 1])


def test_examples_are_what_their_buttons_say(path):
    data = read(path)
    order, examples = order_of(data), {e["name"]: e["rows"] for e in data["examples"]}
    asked = PRODUCTS[(PRODUCTS["part"] == "test") & (PRODUCTS["label"] != "mug")]
    won = order[examples[f"one of {len(asked)}: wrong in before, right in after"]]
    assert sorted(won) == asked.index.tolist()
    assert len(examples) == 2  # no product was right before and wrong after
    moved = order[examples["one of the 60 that moved most"]]
    kept = [len(set(NEIGHBOURS["before"][i]) & set(NEIGHBOURS["after"][i])) for i in moved]
    assert kept == sorted(kept)


def sheet_of(path: Path, k: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(scripts(path)[f"sheet{k}"]))).convert("RGB"))


def test_each_product_has_its_own_picture(path):
    data = read(path)
    tiles, side = unpack(data["pictures"]["tiles"]), data["pictures"]["side"]
    assert side == SIDE  # never enlarged
    assert (tiles == -1).sum() == 20
    sheets = [sheet_of(path, k) for k in range(2)]
    for row, tile in zip(order_of(data), tiles, strict=True):
        if tile >= 0:
            top, left = tile % 256 // 16 * side, tile % 16 * side
            pixels = sheets[tile // 256][top : top + side, left : left + side]
            wanted = CLASSES[PRODUCTS["label"][row]]
            np.testing.assert_allclose(pixels[8:-8, 8:-8].mean((0, 1)), wanted, atol=12)


def test_products_that_share_a_picture_share_a_tile(tmp_path):
    twice = PRODUCTS.assign(image_row=np.arange(N) // 2)
    data = read(write(tmp_path / "map.html", products=twice))
    tiles = dict(zip(order_of(data), unpack(data["pictures"]["tiles"]), strict=True))
    assert all(tiles[2 * k] == tiles[2 * k + 1] for k in range(N // 2))
    assert len(set(tiles.values())) == N // 2


def test_budget_makes_pictures_smaller_then_fewer_and_says_so(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (N, 64, 64, 3), dtype=np.uint8)
    whole = write(tmp_path / "whole.html", thumbnails=noise)
    bare = write(tmp_path / "bare.html", thumbnails=None).stat().st_size
    assert read(whole)["pictures"]["side"] == 64
    pictures_take = whole.stat().st_size - bare
    half = write(tmp_path / "half.html", thumbnails=noise, max_bytes=bare + pictures_take // 2)
    assert half.stat().st_size <= bare + pictures_take // 2
    assert 24 <= read(half)["pictures"]["side"] < 64
    assert read(half)["pictures"]["shown"] == N - 20
    assert "pixels wide" in read(half)["note"]
    assert "MB" in read(half)["note"]
    few = write(tmp_path / "few.html", thumbnails=noise, max_bytes=bare + pictures_take // 20)
    assert few.stat().st_size <= bare + pictures_take // 20
    assert 0 <= read(few)["pictures"]["shown"] < N - 20
    assert f"of {N - 20} pictures" in read(few)["note"]
    with pytest.raises(ValueError, match="max_bytes"):
        write(tmp_path / "none.html", max_bytes=10_000)
    assert not (tmp_path / "none.html").exists()


def test_policy_admits_only_this_style_and_this_script(path):
    text = path.read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name, body in (
        ("script-src", scripts(path)[""]),
        ("style-src", re.search(r"<style>(.*?)</style>", text, re.S)[1]),
    ):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
    assert "<" not in scripts(path)["data"]
    assert not re.search(r"https?://", text)


def test_wrong_input_is_refused_by_name(tmp_path):
    for changed, message in {
        "products": (PRODUCTS.rename(columns={"title": "titel"}), "did you mean 'titel'"),
        "positions": ({"before": POSITIONS["before"][:-1]}, r"positions of before: expected finite \(400, 2\)"),
        "neighbours": ({"befor": NEIGHBOURS["before"]}, "no view 'befor'; did you mean 'before'"),
        "predicted": ({"after": ["mug"]}, "1 rows for 400"),
        "colours": ({"Price": "prize"}, "no column 'prize'; did you mean 'price'"),
    }.items():
        with pytest.raises(ValueError, match=message[1]):
            write(tmp_path / "map.html", **{changed: message[0]})
    with pytest.raises(ValueError, match=r"outside -1\.\.399"):
        write(tmp_path / "map.html", neighbours={"before": np.full((N, K), N)})
    with pytest.raises(ValueError, match="finite"):
        write(tmp_path / "map.html", positions={"a": np.full((N, 2), np.nan)}, neighbours=None, predicted=None)
    with pytest.raises(ValueError, match="'x' has before; the views are before, after"):
        write(tmp_path / "map.html", colours={"x": {"before": "price"}})


# ---- in a browser


def state(shown) -> dict:
    return shown.evaluate("icssl.state()")


def until(condition, seconds: float = 5.0):
    """The first true value of ``condition()``; the page's policy forbids Playwright's own waiting, which evals."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def ready(shown) -> None:
    until(lambda: state(shown)["drawn"])
    settle(shown)


def settle(shown) -> None:
    """Until two more frames are drawn and the maps are sharp again (120 ms after the last movement)."""
    shown.wait_for_timeout(150)
    shown.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def canvas(shown, view: int) -> tuple[str, dict]:
    selector = f"canvas.draw >> nth={view}"
    return selector, shown.locator(selector).bounding_box()


def place(shown, view: int, title: str) -> tuple[int, float, float]:
    """A product's index, and where it is on the screen in a map."""
    i = shown.evaluate("title => icssl.find(title)", title)
    x, y = shown.evaluate("([view, i]) => icssl.where(view, i)", [view, i])
    box = canvas(shown, view)[1]
    return i, box["x"] + x, box["y"] + y


def places(shown, view: int) -> np.ndarray:
    """Where each product of the page is in a map, from its upper left corner: (N, 2) pixels."""
    every = "([view, n]) => Array.from({length: n}, (_, i) => icssl.where(view, i))"
    return np.array(shown.evaluate(every, [view, N]))


def drawn(pixels: np.ndarray) -> float:
    """Share of pixels that differ from the background, which is the most frequent colour."""
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return float((np.abs(pixels.astype(int) - colours[counts.argmax()]).max(axis=2) > 24).mean())


def differ(a: np.ndarray, b: np.ndarray) -> int:
    return int((np.abs(a.astype(int) - b).max(axis=2) > 24).sum())


def test_maps_are_drawn(shown):
    for view in range(2):
        pixels = browser.pixels(shown, canvas(shown, view)[0])
        assert drawn(pixels) > 0.03
    assert shown.title() == "Toys & <i>others</i>"
    assert shown.locator("header").inner_text().count("Notice <b>that</b> classes") == 1
    assert shown.locator("#note").inner_text() == "380 of 400 products have a picture. Pictures are 32 pixels wide."
    assert shown.locator(".map h2").nth(0).inner_text().endswith("of 40 predicted")


def test_pictures_are_drawn_on_the_map(shown):
    selector = canvas(shown, 0)[0]
    on = browser.pixels(shown, selector)
    shown.locator("#pictures").uncheck()
    settle(shown)
    off = browser.pixels(shown, selector)
    squares = (np.abs(on.astype(int) - CLASSES["rug"]).max(axis=2) < 16).sum()
    assert squares > 300
    assert squares > 5 * (np.abs(off.astype(int) - CLASSES["rug"]).max(axis=2) < 16).sum()


def test_selection_in_one_map_lights_up_in_the_other(shown):
    shown.locator("#pictures").uncheck()
    shown.get_by_text("Box", exact=True).click()
    box = canvas(shown, 1)[1]
    xy = places(shown, 1)
    x0, y0, x1, y1 = box["width"] * 0.5, box["height"] * 0.2, box["width"] * 0.95, box["height"] * 0.6
    wanted = np.flatnonzero((xy > [x0, y0]).all(axis=1) & (xy < [x1, y1]).all(axis=1))
    assert 20 < len(wanted) < N / 2
    before = browser.pixels(shown, canvas(shown, 0)[0])
    shown.mouse.move(box["x"] + x0, box["y"] + y0)
    shown.mouse.down()
    shown.mouse.move(box["x"] + x1, box["y"] + y1, steps=5)
    shown.mouse.up()
    shown.mouse.move(5, 5)
    settle(shown)
    assert state(shown)["selected"] == wanted.tolist()
    after = browser.pixels(shown, canvas(shown, 0)[0])
    assert differ(before, after) > 1000  # the others are dim now
    other = np.setdiff1d(np.arange(N), wanted)
    at = places(shown, 0).round().astype(int)
    darkest = after[at[:, 1], at[:, 0]].min(axis=1)
    assert np.median(darkest[other]) > 200  # pale
    assert np.median(darkest[wanted]) < 60  # in their colours
    assert f"{len(wanted)} products selected" in shown.locator("#status").inner_text()
    titles = read(Path(shown.url.removeprefix("file://")))["titles"]
    listed = shown.locator("#selected .product .title").all_inner_texts()
    assert len(listed) == min(len(wanted), 100)
    assert set(listed) <= {titles[i] for i in wanted}
    labels = PRODUCTS.set_index("title")["label"][[titles[i] for i in wanted]].value_counts()
    first = shown.locator("#selected .bars li").first.inner_text()
    assert first.startswith(f"{labels.index[0]} {labels.iloc[0]} of the ")
    shown.keyboard.press("Escape")
    assert state(shown)["selected"] == []


def test_shift_and_drag_is_a_lasso(shown):
    _, box = canvas(shown, 0)
    shown.keyboard.down("Shift")
    corners = [(0.1, 0.1), (0.9, 0.1), (0.1, 0.9)]  # a triangle: the upper left half
    shown.mouse.move(*(box[a] + box[b] * c for a, b, c in (("x", "width", 0.1), ("y", "height", 0.1))))
    shown.mouse.down()
    for x, y in corners[1:]:
        shown.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=4)
    shown.mouse.up()
    shown.keyboard.up("Shift")
    xy = places(shown, 0) / [box["width"], box["height"]]
    inside = (xy > 0.1).all(axis=1) & (xy.sum(axis=1) < 1)
    close = np.abs(xy.sum(axis=1) - 1) < 0.01
    chosen = np.isin(np.arange(N), state(shown)["selected"])
    assert inside.sum() > 50
    assert (chosen == inside)[~close & (np.abs(xy - 0.1) > 0.01).all(axis=1)].all()


def test_hover_shows_the_picture_and_the_place_in_the_other_map(shown):
    shown.locator("#pictures").uncheck()
    row = PRODUCTS.index[(PRODUCTS["part"] == "test") & (PRODUCTS["label"] == "rug") & (PRODUCTS["image_row"] >= 0)][1]
    title = PRODUCTS["title"][row]
    i, x, y = place(shown, 0, title)
    before = browser.pixels(shown, canvas(shown, 1)[0])
    shown.mouse.move(x, y)
    until(lambda: state(shown)["hovered"] == i)
    settle(shown)
    tip = shown.locator("#tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert title in text
    assert "before: ✗ mug" in text
    assert "after: ✓ rug" in text
    thumbnail = browser.pixels(shown, "#tip .thumb")
    np.testing.assert_allclose(thumbnail[10:-10, 10:-10].mean((0, 1)), CLASSES["rug"], atol=12)
    after = browser.pixels(shown, canvas(shown, 1)[0])
    _, u, v = place(shown, 1, title)
    box = canvas(shown, 1)[1]
    u, v = round(u - box["x"]), round(v - box["y"])
    ring = slice(max(v - 13, 0), v + 14), slice(max(u - 13, 0), u + 14)
    assert differ(before[ring], after[ring]) > 40
    shown.mouse.move(5, 5)
    until(lambda: not tip.is_visible())


def test_click_pins_a_product_with_its_neighbours_in_each_view(shown):
    row = PRODUCTS.index[(PRODUCTS["part"] == "test") & (PRODUCTS["label"] == "lamp")][2]
    title = PRODUCTS["title"][row]
    i, x, y = place(shown, 1, title)
    shown.locator("#pictures").uncheck()
    shown.mouse.click(x, y)
    assert state(shown)["pinned"] == i
    pinned = shown.locator("#pinned")
    assert pinned.locator("h2").inner_text() == title
    assert f"p{row:03d}" in pinned.locator("dl").inner_text()
    for view, side in zip(POSITIONS, pinned.locator(".sides > div").all(), strict=True):
        assert side.locator("h3").inner_text() == f"Nearest in {view}"
        listed = side.locator(".title").all_inner_texts()
        assert listed == PRODUCTS["title"][NEIGHBOURS[view][row]].tolist()
        same = side.locator(".product.same").count()
        assert same == (PRODUCTS["label"][NEIGHBOURS[view][row]] == "lamp").sum()
    pinned.locator(".product").first.click()
    neighbour = PRODUCTS["title"][NEIGHBOURS["before"][row][0]]
    assert pinned.locator("h2").inner_text() == neighbour
    assert shown.evaluate("document.activeElement.closest('#pinned') !== null")  # the focus is not lost


def test_search_by_keyboard_alone(shown):
    for _ in range(12):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.id") == "search":
            break
    before = browser.pixels(shown, canvas(shown, 0)[0])
    shown.keyboard.type("bork lamp")  # as anyone would type Börk
    settle(shown)
    wanted = PRODUCTS["title"].str.startswith("Börk lamp").sum()
    assert state(shown)["matched"] == wanted
    assert shown.locator("#status").inner_text() == f"{wanted} titles match"
    assert shown.locator("#matches li").count() == min(wanted, 20)
    assert differ(before, browser.pixels(shown, canvas(shown, 0)[0])) > 20 * wanted  # a ring each
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("ArrowDown")
    second = shown.locator("#matches li").nth(1)
    assert second.get_attribute("aria-selected") == "true"
    assert shown.locator("#search").get_attribute("aria-activedescendant") == second.get_attribute("id")
    title = second.locator("span").inner_text()
    shown.keyboard.press("Enter")
    assert shown.locator("#pinned h2").inner_text() == title
    shown.keyboard.press("ArrowUp")
    shown.keyboard.press("ArrowUp")  # back in the field
    shown.keyboard.press("Enter")
    assert len(state(shown)["selected"]) == wanted
    shown.keyboard.press("Escape")
    assert shown.locator("#search").input_value() == ""
    assert state(shown)["matched"] == 0


def test_map_by_keyboard_alone(shown):
    shown.evaluate("document.getElementById('maps').focus()")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.getAttribute('aria-label')") == "Map of 400 products: before"
    shown.keyboard.press("+")
    shown.keyboard.press("+")
    zoomed = state(shown)["camera"]
    assert zoomed["zoom"] == pytest.approx(1.4**2)
    shown.keyboard.press("ArrowLeft")
    shown.keyboard.press("ArrowUp")
    moved = state(shown)["camera"]
    assert moved["x"] < zoomed["x"]
    assert moved["y"] < zoomed["y"]
    settle(shown)
    aimed = state(shown)["hovered"]
    assert aimed >= 0
    shown.keyboard.press("Enter")
    assert state(shown)["pinned"] == aimed
    shown.keyboard.press("s")
    _, box = canvas(shown, 0)
    xy = places(shown, 0)
    inside = ((xy >= 0) & (xy <= [box["width"], box["height"]])).all(axis=1)
    assert set(state(shown)["selected"]) == set(np.flatnonzero(inside))
    shown.keyboard.press("0")
    assert state(shown)["camera"] == {"x": 0.5, "y": 0.5, "zoom": 1}
    shown.keyboard.press("Escape")
    assert state(shown)["selected"] == []
    assert state(shown)["pinned"] == aimed
    shown.keyboard.press("Escape")
    assert state(shown)["pinned"] == -1


def test_wheel_zooms_at_the_pointer_and_drag_moves_all_maps(shown):
    title = PRODUCTS["title"][100]
    _, x, y = place(shown, 0, title)
    shown.mouse.move(x, y)
    shown.mouse.wheel(0, -500)
    until(lambda: state(shown)["camera"]["zoom"] > 1.5)
    _, u, v = place(shown, 0, title)
    assert (u, v) == pytest.approx((x, y), abs=2)  # events come in whole pixels
    before = [place(shown, view, title)[1:] for view in (0, 1)]
    shown.mouse.move(x + 3, y + 3)
    shown.mouse.down()
    shown.mouse.move(x + 53, y - 17, steps=4)
    shown.mouse.up()
    after = [place(shown, view, title)[1:] for view in (0, 1)]
    np.testing.assert_allclose(np.subtract(after, before), [[50, -20]] * 2, atol=1)
    assert state(shown)["pinned"] == -1  # a drag is no click


def test_legend_highlights_a_class_and_colours_change(shown, path):
    shown.locator("#pictures").uncheck()
    plain = browser.pixels(shown, canvas(shown, 1)[0])
    button = shown.locator("#legend button", has_text="rug")
    assert button.inner_text().split() == ["rug", str((PRODUCTS["label"] == "rug").sum())]
    button.click()
    settle(shown)
    assert button.get_attribute("aria-pressed") == "true"
    lit = browser.pixels(shown, canvas(shown, 1)[0])
    darkest, x, y = {}, *places(shown, 1).round().astype(int).T
    for name in ("rug", "mug"):
        rows = (PRODUCTS["label"] == name).to_numpy()[order_of(read(path))]
        darkest[name] = np.median(lit[y[rows], x[rows]].min(axis=1))
    assert darkest["rug"] < 60 < 200 < darkest["mug"]
    button.click()
    settle(shown)
    assert differ(plain, browser.pixels(shown, canvas(shown, 1)[0])) == 0
    for name in shown.locator("#colour option").all_inner_texts():
        shown.select_option("#colour", label=name)
        settle(shown)
        if name != "Class":
            assert differ(plain, browser.pixels(shown, canvas(shown, 1)[0])) > 500, name
    assert shown.locator("#legend").inner_text().split() == ["0", "99.8"]  # the price's scale


def test_movement_goes_from_the_first_view_to_the_last(shown):
    xy = {row: [POSITIONS[view][row] for view in POSITIONS] for row in range(10, 20)}
    shown.emulate_media(reduced_motion="reduce")
    shown.get_by_text("Movement", exact=True).click()
    settle(shown)
    assert shown.locator("canvas.draw:visible").count() == 1
    for share in (0, 0.5, 1):
        shown.locator("#between").fill(str(share))
        at = {r: shown.evaluate("t => icssl.where(-1, icssl.find(t))", PRODUCTS["title"][r]) for r in xy}
        wanted = {r: (1 - share) * a + share * b for r, (a, b) in xy.items()}
        k = (at[11][0] - at[10][0]) / (wanted[11][0] - wanted[10][0])
        for r in xy:
            assert at[r][0] - at[10][0] == pytest.approx(k * (wanted[r][0] - wanted[10][0]), abs=1)
            assert at[r][1] - at[10][1] == pytest.approx(-k * (wanted[r][1] - wanted[10][1]), abs=1)
    assert drawn(browser.pixels(shown, "canvas.draw:visible")) > 0.02


def test_hostile_titles_are_only_text(chromium, path):
    with browser.opened(chromium, path.as_uri(), ignore=["Trusted", "Content Security Policy"]) as shown:
        ready(shown)
        for title in HOSTILE:
            i = shown.evaluate("title => icssl.find(title)", title)
            assert i >= 0, title
            shown.locator("#search").fill(title.split()[0])
            _, x, y = place(shown, 1, title)
            shown.mouse.move(x, y)
            shown.locator("#matches li", has_text=title.split()[0]).first.click()
        shown.locator("#search").fill("script")
        shown.keyboard.press("Enter")
        assert len(state(shown)["selected"]) == 3
        listed = [row.text_content() for row in shown.locator("#selected .title").all()]
        assert sorted(listed) == sorted(t for t in HOSTILE if "script" in t)
        assert shown.title() == "Toys & <i>others</i>"
        assert shown.locator("img, iframe, object").count() == 0
        assert shown.evaluate("document.scripts.length") == 4  # data, two sheets and the one that runs
        blocked = shown.evaluate(
            """() => {
              const policy = [];
              document.addEventListener("securitypolicyviolation", event => policy.push(event.effectiveDirective));
              try {
                document.body.insertAdjacentHTML("beforeend", "<b>in</b>");
              } catch (error) {
                policy.push(error.name);
              }
              return fetch("https://example.org/").then(() => "loaded", () => "refused")
                .then(answer => new Promise(done => setTimeout(() => done([...policy, answer]), 100)));
            }"""
        )
        assert {"TypeError", "connect-src", "refused"} <= set(blocked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(chromium, path, scheme):
    with browser.opened(chromium, path.as_uri(), color_scheme=scheme) as shown:
        ready(shown)
        background = browser.pixels(shown, canvas(shown, 0)[0])[8, 8]
        assert (background.mean() > 128) == (scheme == "light")
        shown.locator("#help").click()
        shown.locator("#examples button").last.click()
        shown.locator("#search").fill("mug")
        shown.keyboard.press("Enter")
        assert shown.locator("#pinned .bad").count() == 1
        assert browser.low_contrast(shown) == []
        shown.locator("#theme").click()
        settle(shown)
        assert (browser.pixels(shown, canvas(shown, 0)[0])[8, 8].mean() > 128) == (scheme == "dark")
        assert browser.low_contrast(shown) == []


def test_on_a_phone(chromium, path):
    phone = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with browser.opened(chromium, path.as_uri(), width=360, height=740, **phone) as shown:
        ready(shown)
        assert browser.overflow(shown) == 0
        first, second = canvas(shown, 0)[1], canvas(shown, 1)[1]
        assert second["y"] > first["y"] + first["height"]  # stacked
        assert first["width"] > 300
        shown.locator("canvas.draw").first.scroll_into_view_if_needed()
        _, x, y = place(shown, 0, PRODUCTS["title"][200])
        shown.touchscreen.tap(x, y)
        until(lambda: state(shown)["pinned"] >= 0)
        box = canvas(shown, 0)[1]
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = shown.context.new_cdp_session(shown)
        for kind, gap in [("touchStart", 20), *[("touchMove", 20 + 10 * k) for k in range(1, 5)], ("touchEnd", None)]:
            points = [] if gap is None else [{"x": x - gap, "y": y, "id": 0}, {"x": x + gap, "y": y, "id": 1}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert state(shown)["camera"]["zoom"] == pytest.approx(3, rel=0.05)  # from 40 pixels apart to 120
        shown.locator("#help").click()
        shown.get_by_text("Movement", exact=True).click()
        assert browser.overflow(shown) == 0


def test_without_javascript_the_twin_stands_in(chromium, path):
    with browser.opened(chromium, path.as_uri(), java_script_enabled=False) as shown:
        assert shown.locator("noscript strong").is_visible()
        assert shown.locator("noscript img").bounding_box()["width"] == 30
        assert not shown.locator("#theme").is_visible()
        assert not shown.locator("main").is_visible()


def test_one_view_without_anything_else(chromium, tmp_path):
    titles = [f"thing {i}" for i in range(60)] + ["half \ud83d a pair"]
    bare = pd.DataFrame({"title": pd.Series(titles, dtype=object)})
    path = page.write_map(tmp_path / "map.html", "Bare", bare, {"only": np.random.default_rng(0).normal(size=(61, 2))})
    with browser.opened(chromium, path.as_uri()) as shown:
        ready(shown)
        assert drawn(browser.pixels(shown, canvas(shown, 0)[0])) > 0.005
        assert not shown.locator("#layout").is_visible()
        _, x, y = place(shown, 0, "thing 7")
        shown.mouse.click(x, y)
        assert shown.locator("#pinned h2").inner_text().startswith("thing")


def test_three_views_choose_their_movement(chromium, tmp_path):
    views = {f"view {k}": np.random.default_rng(k).normal(size=(N, 2)) for k in range(3)}
    path = write(tmp_path / "map.html", positions=views, predicted=None, neighbours=None)
    with browser.opened(chromium, path.as_uri(), reduced_motion="reduce") as shown:
        ready(shown)
        assert shown.locator("canvas.draw:visible").count() == 3
        shown.get_by_text("Movement", exact=True).click()
        shown.select_option(".ends select", label="view 1 → view 2")
        at = shown.evaluate("[icssl.where(-1, 3), icssl.where(-1, 4)]")
        assert shown.locator(".ends strong").all_inner_texts() == ["view 1", "view 2"]
        order = order_of(read(path))
        wanted = views["view 2"][order[[3, 4]]]
        ratio = np.subtract(*at) / np.subtract(*wanted)
        assert ratio[0] == pytest.approx(-ratio[1], rel=1e-2)
