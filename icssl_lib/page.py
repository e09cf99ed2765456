"""Linked maps of products as one HTML file that needs neither network nor server: ``write_map``.

The page is the static twin of the notebook's widgets. Whatever it shows of a catalogue is hostile input: texts travel
as JSON and are only ever set as text, and a Content-Security-Policy lets nothing run or load but what is in the file.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from icssl_lib.config import nearest
from icssl_lib.images import ImageStore, written_whole

Column = str | Sequence[Any] | np.ndarray | pd.Series

SIDES = (64, 48, 40, 32, 24)  # of thumbnails, in pixels: the first that fits the page's budget
COLUMNS = 16  # a sheet of pictures holds 16 x 16; small ones, since a browser decodes a sheet at its first use
EXAMPLES = 60  # products behind the button that shows one that moved
FACTS = {"label": "Class", "size": "Head or tail", "part": "Part"}  # columns to show, where they are there


def write_map(
    path: Path,
    title: str,
    products: pd.DataFrame,
    positions: Mapping[str, np.ndarray],
    colours: Mapping[str, Column | Mapping[str, Column]] | None = None,
    thumbnails: np.ndarray | ImageStore | None = None,
    *,
    predicted: Mapping[str, Sequence[str | None]] | None = None,
    neighbours: Mapping[str, np.ndarray] | None = None,
    caption: str = "",
    twin: Path | None = None,
    side: int = SIDES[0],
    max_bytes: int = 24_000_000,
) -> Path:
    """Write the same products on one map per view, linked, as a self-contained HTML page.

    The menu of colours begins with what the arguments tell: class, head or tail, right or wrong by each view, share
    of neighbours that changed from the first view to the last. Products are drawn in a seeded random order, so that
    no class lies on top, and when pictures must be left out it is a random sample that keeps them.

    Args:
        products: N rows; columns title and, if there, id, label, size (head or tail), part and image_row (-1: no
            picture; without this column row i has picture i).
        positions: view -> (N, 2), one space for all views, so that positions compare. The first view is "before".
        colours: more entries of the menu: name -> a column of ``products`` or N values (numbers: a scale; anything
            else: classes, most frequent first, or in the order of a Categorical); or view -> either, to colour each
            map by its own. Missing values are grey.
        thumbnails: (pictures, S, S, 3) uint8, or a store of them.
        predicted: view -> N labels by one classifier, None (or NaN) where it was not asked.
        neighbours: view -> (N, k) rows of the nearest products, nearest first, -1 for none.
        caption: what to notice, above the maps.
        twin: a PNG that stands in for the maps where there is no JavaScript.
        side: of a thumbnail in the page, in pixels; at most S.
        max_bytes: of the page. Beyond it thumbnails get smaller, then fewer, and the page says so.

    Raises:
        ValueError: lengths or names that do not match, positions that are not finite, or a page that is over
            ``max_bytes`` without any picture.
    """
    products = products.reset_index(drop=True)
    _check(products, positions, {"predicted": predicted or {}, "neighbours": neighbours or {}})
    order = np.random.default_rng(0).permutation(len(products))
    data = {
        "titles": [str(t) for t in products["title"].iloc[order]],
        "facts": [{"name": name} | _classes(products[c], order) for c, name in FACTS.items() if c in products],
        "ids": [str(i) for i in products["id"].iloc[order]] if "id" in products else None,
        "views": _views(positions, predicted or {}, neighbours or {}, order),
        "colours": _menu(products, positions, predicted or {}, neighbours or {}, colours or {}, order),
        "examples": _examples(products, positions, predicted or {}, neighbours or {}, order),
        "pictures": None,
        "note": "",
    }
    page = {
        "title": title,
        "caption": caption,
        "twin": _data_address(twin.read_bytes(), "png") if twin else "",
        "views": list(positions),
        "count": len(products),
    }
    sheets: list[str] = []
    if thumbnails is not None:
        rows = products["image_row"].to_numpy() if "image_row" in products else np.arange(len(products))
        room = max_bytes - len(_render(page, data, [])) - 12 * len(products)  # 12: a product's tile number, and names
        data["pictures"], sheets = _pictures(thumbnails, rows[order], side, room)
        data["note"] = _note(data["pictures"], int((rows >= 0).sum()), len(rows), side, max_bytes)
    html = _render(page, data, sheets)
    if len(html) > max_bytes:
        raise ValueError(f"{path}: {len(html):,} bytes without pictures, above max_bytes={max_bytes:,}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_bytes(html)
    return path


def _check(products: pd.DataFrame, positions: Mapping[str, np.ndarray], by_view: Mapping[str, Mapping]) -> None:
    if "title" not in products:
        raise ValueError(f"products: no column 'title'; {nearest('title', products.columns)}")
    if not positions or not len(products):
        raise ValueError("nothing to draw: no view or no product")
    for view, xy in positions.items():
        if np.shape(xy) != (len(products), 2) or not np.isfinite(xy).all():
            raise ValueError(f"positions of {view}: expected finite ({len(products)}, 2), found {np.shape(xy)}")
    for name, values in by_view.items():
        for view, column in values.items():
            if view not in positions:
                raise ValueError(f"{name}: no view {view!r}; {nearest(view, positions)}")
            if len(column) != len(products):
                raise ValueError(f"{name} of {view}: {len(column)} rows for {len(products)} products")
            if name == "neighbours" and not (np.min(column) >= -1 and np.max(column) < len(products)):
                raise ValueError(f"neighbours of {view}: rows outside -1..{len(products) - 1}")


# ---- data


def _packed(codes: np.ndarray) -> dict[str, object]:
    """Integers >= -1 as base64 of the smallest unsigned type that holds them; -1 becomes 0, 0 becomes 1, ..."""
    shifted = np.asarray(codes) + 1
    kind = np.min_scalar_type(int(shifted.max(initial=0)))
    return {"bytes": kind.itemsize, "data": base64.b64encode(shifted.astype(f"<u{kind.itemsize}").tobytes()).decode()}


def _classes(column: Sequence[Any] | np.ndarray | pd.Series, order: np.ndarray) -> dict[str, object]:
    """A categorical column: names (in a Categorical's order, else most frequent first) and a code per product."""
    column = pd.Series(column).reset_index(drop=True)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object).where(column.notna(), None).map(str, na_action="ignore")
        counts = column.value_counts().sort_index().sort_values(ascending=False, kind="stable")
        column = pd.Series(pd.Categorical(column, categories=counts.index))
    return {"names": [str(c) for c in column.cat.categories], "codes": _packed(column.cat.codes.to_numpy()[order])}


def _square(positions: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Lower left corner, (2,), and side of the smallest square around the middle of all views that holds them."""
    everything = np.concatenate([np.asarray(xy, dtype=float) for xy in positions.values()])
    low, high = everything.min(axis=0), everything.max(axis=0)
    span = float((high - low).max()) or 1.0
    return (low + high - span) / 2, span


def _views(
    positions: Mapping[str, np.ndarray], predicted: Mapping, neighbours: Mapping, order: np.ndarray
) -> list[dict[str, object]]:
    """Positions as 16 bits of the square that holds all views, y downwards as on a screen."""
    corner, span = _square(positions)
    rank = np.empty(len(order) + 1, dtype=np.int64)  # where each product stands in the page; the last is for -1
    rank[order], rank[-1] = np.arange(len(order)), -1
    views = []
    for view, xy in positions.items():
        unit = (np.asarray(xy, dtype=float)[order] - corner) / span
        unit[:, 1] = 1 - unit[:, 1]
        entry: dict[str, object] = {"name": view, "positions": _packed(np.rint(unit * 65534))}
        entry["predicted"] = _classes(predicted[view], order) if view in predicted else None
        if view in neighbours:
            nearest_rows = np.asarray(neighbours[view])[order]
            entry["neighbours"] = _packed(rank[nearest_rows]) | {"k": nearest_rows.shape[1]}
        views.append(entry)
    return views


def _right(labels: pd.Series, predicted: Sequence[str | None]) -> pd.Series:
    """right or wrong, missing where nothing was predicted."""
    guess = pd.Series(list(predicted), dtype=object)
    values = np.where(guess == labels, "right", "wrong").astype(object)
    return pd.Series(pd.Categorical(np.where(guess.isna(), None, values), categories=["right", "wrong"]))


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(N, k) neighbours twice -> the share of each product's that is not among the others', (N,)."""
    kept = (before[:, :, None] == after[:, None, :]).any(axis=2) & (before >= 0)
    return 1 - kept.sum(axis=1) / np.maximum((before >= 0).sum(axis=1), 1)


def _moved(positions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Each product's distance from the first view to the last, in units of the square that holds all views, (N,)."""
    _, span = _square(positions)
    first, *_, last = (np.asarray(xy, dtype=float) for xy in positions.values())
    return np.linalg.norm(last - first, axis=1) / span


def _menu(
    products: pd.DataFrame,
    positions: Mapping[str, np.ndarray],
    predicted: Mapping,
    neighbours: Mapping,
    colours: Mapping[str, Column | Mapping[str, Column]],
    order: np.ndarray,
) -> list[dict[str, object]]:
    views, entries = list(positions), {}
    if "label" in products:
        entries["Class"] = "label"
        if predicted:
            nothing = [None] * len(products)
            entries["Right or wrong"] = {
                view: _right(products["label"], predicted.get(view, nothing)) for view in views
            }
    if "size" in products:
        entries["Head or tail"] = pd.Categorical(products["size"], categories=["head", "tail"])
    if len(views) > 1:
        entries["Distance moved, of the map's width"] = _moved(positions)
    if len(views) > 1 and views[0] in neighbours and views[-1] in neighbours:
        entries["Neighbours that changed"] = _changed(neighbours[views[0]], neighbours[views[-1]])
    menu = []
    for name, value in (entries | dict(colours)).items():
        if isinstance(value, Mapping):
            if set(value) != set(views):
                raise ValueError(f"colours: {name!r} has {', '.join(value)}; the views are {', '.join(views)}")
            columns = [_column(products, name, value[view]) for view in views]
        else:
            columns = [_column(products, name, value)]
        menu.append({"name": name} | _scale(name, columns, order))
    return menu


def _column(products: pd.DataFrame, name: str, value: Column) -> pd.Series:
    if isinstance(value, str):
        if value not in products:
            raise ValueError(f"colours: {name!r}: no column {value!r}; {nearest(value, products.columns)}")
        value = products[value]
    column = pd.Series(value).reset_index(drop=True)
    if len(column) != len(products):
        raise ValueError(f"colours: {name!r}: {len(column)} values for {len(products)} products")
    return column


def _scale(name: str, columns: list[pd.Series], order: np.ndarray) -> dict[str, object]:
    """One entry of the menu: a scale of numbers in 255 steps, or classes; one column, or one for each view."""
    numeric = [pd.api.types.is_numeric_dtype(c) and not pd.api.types.is_bool_dtype(c) for c in columns]
    if all(numeric):
        values = np.array([c.to_numpy(dtype=float, na_value=np.nan) for c in columns])
        values[~np.isfinite(values)] = np.nan
        low, high = (float(f(values)) for f in (np.nanmin, np.nanmax)) if not np.isnan(values).all() else (0.0, 0.0)
        steps = np.where(np.isnan(values), -1, np.rint((values - low) / ((high - low) or 1) * 254))
        return {"low": low, "high": high, "codes": [_packed(row[order].astype(np.int64)) for row in steps]}
    together = pd.concat(columns, ignore_index=True)  # one legend for all views
    if not all(isinstance(c.dtype, pd.CategoricalDtype) for c in columns):
        together = together.astype(object)
    n = len(order)
    coded = [_classes(together, order + i * n) for i in range(len(columns))]
    return {"names": coded[0]["names"], "codes": [c["codes"] for c in coded]}


def _examples(
    products: pd.DataFrame,
    positions: Mapping[str, np.ndarray],
    predicted: Mapping,
    neighbours: Mapping,
    order: np.ndarray,
) -> list[dict[str, object]]:
    """What a newcomer may ask to be shown, each with the products that answer, best first."""
    first, last = next(iter(positions)), next(reversed(positions))
    found = []
    if first != last and first in neighbours and last in neighbours:
        changed = _changed(neighbours[first], neighbours[last])[order]
        rows = np.lexsort((-_moved(positions)[order], -changed))
        rows = rows[changed[rows] > 0][:EXAMPLES]
        found.append((f"one of the {len(rows)} that moved most", rows))
    if first != last and "label" in products and first in predicted and last in predicted:
        before, after = (_right(products["label"], predicted[v]).to_numpy(dtype=object)[order] for v in (first, last))
        for was, became in (("wrong", "right"), ("right", "wrong")):
            rows = np.flatnonzero((before == was) & (after == became))
            found.append((f"one of {len(rows)}: {was} in {first}, {became} in {last}", rows))
    return [{"name": name, "rows": rows.tolist()} for name, rows in found if len(rows)]


# ---- pictures


def _pictures(
    store: np.ndarray | ImageStore, rows: np.ndarray, side: int, room: int
) -> tuple[dict[str, object], list[str]]:
    """Sheets of 16 x 16 thumbnails, the largest that fit into ``room`` bytes of base64; in order, so a cut is a sample.

    Returns:
        side, stored (the side in the store), columns, each product's tile (-1: none), packed, and how many are
        shown; and the sheets, base64 WebP.
    """
    distinct, first, tile = np.unique(rows, return_index=True, return_inverse=True)
    by_first = np.argsort(np.where(distinct >= 0, first, len(rows)), kind="stable")[: (distinct >= 0).sum()]
    number = np.full(len(distinct), -1)
    number[by_first] = np.arange(len(by_first))
    distinct = distinct[by_first]  # picture rows, in the order of their first product
    per_sheet = COLUMNS**2
    sample = distinct[np.linspace(0, len(distinct) - 1, min(per_sheet, len(distinct))).astype(int)]
    stored = np.shape(store[sample[:1]])[1] if len(sample) else side
    sides = sorted({min(side, stored), *(s for s in SIDES if s < min(side, stored))}, reverse=True)
    for side in sides:
        each = len(_sheet(store[sample], side)) / max(len(sample), 1)
        if each * len(distinct) <= room:
            break
    sheets: list[str] = []
    for start in range(0, len(distinct), per_sheet):
        sheet = _sheet(store[distinct[start : start + per_sheet]], side)
        room -= len(sheet)
        if room < 0:
            number[number >= start] = -1
            break
        sheets.append(sheet)
    tiles = number[tile]
    shown = int((tiles >= 0).sum())
    return {"side": side, "stored": stored, "columns": COLUMNS, "tiles": _packed(tiles), "shown": shown}, sheets


def _sheet(pictures: np.ndarray, side: int) -> str:
    """Up to 256 pictures (n, S, S, 3), resized and tiled, as base64 of a WebP file (60% of JPEG's bytes)."""
    height = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * side, height * side), "white")
    for i, picture in enumerate(pictures):
        thumbnail = Image.fromarray(picture)
        if thumbnail.width != side:
            thumbnail = thumbnail.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (i % COLUMNS * side, i // COLUMNS * side))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=75, method=2)
    return base64.b64encode(file.getvalue()).decode()


def _note(pictures: dict[str, Any], have: int, products: int, side: int, max_bytes: int) -> str:
    """What a reader must know about the pictures: how many there are, how large, and what the budget cost."""
    text = f"{have:,} of {products:,} products have a picture. " if have < products else ""
    if pictures["shown"] < have:
        text += (
            f"To keep this file below {max_bytes / 1e6:g} MB it holds {pictures['shown']:,} of {have:,} pictures, a "
        )
        return text + f"random sample, {pictures['side']} pixels wide."
    if pictures["side"] < min(side, pictures["stored"]):
        return text + f"To keep this file below {max_bytes / 1e6:g} MB its pictures are {pictures['side']} pixels wide."
    return text + f"Pictures are {pictures['side']} pixels wide."


def _data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# ---- the page


def _render(page: dict[str, object], data: dict[str, object], sheets: list[str]) -> bytes:
    from jinja2 import Environment
    from markupsafe import Markup

    assets = files("icssl_lib") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("map.css", "map.js"))
    digests = {
        f"{name}_hash": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("style", style), ("script", script))
    }
    # Within a script element only "<" matters to the HTML parser: </script>, <!--
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (assets / "map.html").read_text(encoding="utf-8")
    )
    inlined = {"style": Markup(style), "script": Markup(script), "data": Markup(text), "sheets": sheets}
    return template.render(page | digests | inlined).encode("utf-8", "replace")  # a title may hold half a surrogate
