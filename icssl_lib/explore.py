"""Explore embeddings: `explore` takes any table and encoders, `open_run` a study's; `linked_maps` draws them as a
Vega-Altair chart, and `Live` shows that. A catalogue's texts are hostile: they stay data."""

import base64
import html
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from PIL import Image

from icssl_lib.adapt import load_towers
from icssl_lib.catalogue import Catalogue, head_tail, open_catalogue
from icssl_lib.config import Run, Study, TextConfig
from icssl_lib.encoders import embed_titles, load_text, nearest_rows
from icssl_lib.images import ImageError, decode, read_bytes
from icssl_lib.methods import METHODS
from icssl_lib.metrics import method_name
from icssl_lib.runs import path_of, resolved
from icssl_lib.sources.table import image_of, text_of
from icssl_lib.space import Exploration, ExploreError, View, kept
from icssl_lib.style import PALETTE

# Signs of groups: eight classes, the other classes (the palette's own grey is left to them), five steps of viridis.
COLOURS = [*PALETTE[:7], PALETTE[9], "#c4c4c4", "#440154", "#3b528b", "#21918c", "#5ec962", "#d8c800"]
TRIANGLES = [f"triangle-{way}" for way in ("up", "down", "left", "right")]
SHAPES = ["circle", "square", "cross", "diamond", *TRIANGLES, *["circle"] * 6]
SIDE, NEAR = 400, 10  # of a map, in pixels; neighbours that are shown


def explore(table: pd.DataFrame, encoders: Mapping[str, Any], images: Path | str = ".", **text: Any) -> Exploration:
    """Any catalogue under any encoders: nothing of a study is needed.
    table: columns title and, where there are some, id, label and image (a path below ``images``, encoded bytes, pixels,
    or what the datasets library makes of a picture). A product without a title is left out, and a picture that cannot
    be read. encoders: name -> a Hugging Face folder or hub name, a SentenceTransformer, or a function of titles to
    (n, H). text: pooling and max_tokens of the folders, as in `config.TextConfig`. Raises: ExploreError, ModelError."""
    known = table.columns if isinstance(table, pd.DataFrame) else pd.Index([])
    if known.nlevels > 1 or known.duplicated().any() or "title" not in known:
        raise ExploreError(f"expected distinct columns, one of them title; found {list(known)}"[:300])
    each = encoders.values() if isinstance(encoders, Mapping) else [None]
    if not all(isinstance(e, str | Path) or callable(getattr(e, "encode", e)) for e in each):
        raise ExploreError(f"encoders: expected a dict of names to folders, hub names or functions: {encoders!r:.80}")
    cells = {"id": table.index, "label": [""] * len(table), "image": [""] * len(table), **table}
    try:
        config = TextConfig(**text)
        products = {name: [text_of("table", name, cell) for cell in cells[name]] for name in ("id", "title", "label")}
        pictures = [image_of("table", "image", cell) for cell in cells["image"]]
    except ValueError as error:  # of a setting, or a CatalogueError
        raise ExploreError(" ".join(str(error).split())) from None
    one_line = lambda text: " ".join(text.encode("utf-8", "replace").decode().split())  # noqa: E731
    products = pd.DataFrame(products, dtype=object).map(one_line)
    products["image"] = pd.Series(pictures, dtype=object)
    products = products[products["title"] != ""].reset_index(drop=True)
    if products.empty:
        raise ExploreError(f"none of {len(table)} products has a title")
    keys = pd.Series([image if isinstance(image, str) else i for i, image in products["image"].items()], dtype=object)
    products = products.assign(part="", image_row=pd.factorize(keys)[0])

    def picture(row: int) -> np.ndarray | None:
        image = products["image"][row]
        try:
            path = isinstance(image, str) and Path(images or "").expanduser() / Path(image).expanduser()
            return decode(read_bytes(path) if path else image, 64)
        except (ImageError, RuntimeError):  # not to be read, or none
            return None

    counts = products.loc[products["label"] != "", "label"].value_counts()
    return _seen(products, counts, picture, encoders, config)


def _seen(table: pd.DataFrame, counts: pd.Series, picture: Callable, encoders: Mapping, text: TextConfig):
    label, (head, _), views = table["label"], head_tail(counts), {}
    size = np.select([label == "", label.isin(head)], ["", "head"], "tail")
    for name, encoder in encoders.items():
        embed = encoder if isinstance(encoder, str) else getattr(encoder, "encode", encoder)
        if isinstance(embed, str | Path):
            embed = partial(embed_titles, *load_text(os.path.expanduser(encoder), text.max_tokens), text=text)
        found, rows = embed(list(table["title"])), torch.empty(0)
        with suppress(TypeError, ValueError, RuntimeError):
            rows = torch.as_tensor(found, dtype=torch.float32)
        if rows.ndim != 2 or len(rows) != len(table) or not rows.isfinite().all():
            raise ExploreError(f"encoder {name!r} gives no row of finite numbers for each title: {found!r:.80}")
        views[name] = View(embed, rows)
    return Exploration(table[["id", "title", "label", "part", "image_row"]].assign(size=size), picture, views)


def open_run(study: Study, out: Path, dataset: str, methods: Sequence[str], seed=0, part: str = "") -> Exploration:
    """A dataset's products (of one part, or all) under the encoders that a run's methods left, with their classifiers'
    predictions on Test at the largest fraction of Train. Raises: CatalogueError, ModelError: not made yet."""
    catalogue, study = open_catalogue(Path(out) / "catalogues" / dataset), resolved(study, Path(out))
    products = catalogue.part(part) if part else catalogue.products
    runs = {method: Run(dataset, method, seed) for method in methods}
    folders = {m: path_of(out, "encoders", run) if METHODS[m].adapts else study.text.model for m, run in runs.items()}
    at, images = products["image_row"].to_numpy(), catalogue.images
    picture = lambda row: images[[at[row]]][0] if at[row] >= 0 else None  # noqa: E731
    space = _seen(products, catalogue.label_counts, picture, folders, study.text)
    for method, view in space.views.items():
        path = path_of(out, "predictions", runs[method]).with_suffix(".parquet")
        if path.is_file():
            table = pd.read_parquet(path, columns=["fraction", "id", "predicted"])
            table = table[table["fraction"] == table["fraction"].max()].set_index("id")["predicted"]
            view.predicted = table.reindex(products["id"]).to_numpy(dtype=object)
        if METHODS[method].pictures != "none" and images is not None:
            view.share = cache(partial(_share, partial(load_towers, study, method, folders[method]), catalogue, at))
    return space


def _share(load: Callable, catalogue: Catalogue, at: np.ndarray) -> tuple[Callable, torch.Tensor]:
    """As `View.share`, by the towers that adaptation left."""
    towers, images = load()[0].requires_grad_(False), catalogue.checked_images()
    pieces = (torch.from_numpy(images[piece]) for piece in np.split(at.clip(0), range(64, len(at), 64)))
    pictures = torch.cat([towers.vision.projection(towers.vision.embed(piece)) for piece in pieces])
    return towers.text.projection, pictures


PICKED = "!isValid(picked.by) || indexof(picked.by, colour) < 0 || indexof(picked.group, datum.group) >= 0"
LIT = {"and": [{"param": "brush"}, PICKED, "indexof(lower(datum.title), lower(find)) >= 0"]}
RANK = "indexof(isValid(clicked.near{0}) ? split(clicked.near{0}[0], ' ') : [], '' + datum.row)"  # -1: not near
SIGNS = [
    channel("group:N", legend=None, scale=alt.Scale(domain=list(range(len(signs))), range=signs))
    for channel, signs in ((alt.Color, COLOURS), (alt.Shape, SHAPES))
]
HELP = [
    "Drag on a map to light up the same products on all; drag on a second map too for those in both.",
    "Click a product for its neighbours, hover for its picture. Wheel: zoom; shift and drag: pan; double click: back.",
]


def linked_maps(space: Exploration, most: int = 5000) -> alt.VConcatChart:
    """The same products on a map per view, linked; a slider leads the last from the first view to its own.
    ``chart.save(path, inline=True)`` makes a page. Of more than ``most`` products a sample, stratified by label."""
    titles, last = list(map(method_name, space.views)), len(space.views) - 1
    table = _drawn(space, most)
    groups = _groups(table, titles)
    said = {f"said{i}": f"by {title}" for i, title in enumerate(titles) if f"said{i}" in table}
    told = {"image": "image", "title": "product", "label": "class"} | said
    told = [alt.Tooltip(f"{name}:N", title=title) for name, title in told.items()]
    size = alt.SizeValue(min(40, max(12, 60_000 // len(table))))
    maps = [_map(i, "t" if i == last else i, title, size).encode(tooltip=told) for i, title in enumerate(titles)]
    maps, lists = alt.hconcat(*maps, _legend(groups)), alt.hconcat(*map(_list, range(len(titles)), titles))
    chart = alt.vconcat(maps, lists, data=_data(table.sort_values("by0", ascending=False)), spacing=10)  # grey below
    sample = f" of {len(space.products):,}, a sample stratified by class" if len(table) < len(space.products) else ""
    chart.title = alt.Title(f"{len(table):,} products{sample}", subtitle=HELP, anchor="start", subtitleColor="#555555")
    actions = {"export": True, "source": False, "compiled": False, "editor": False}  # the editor lies on a server
    chart.usermeta = {"embedOptions": {"renderer": "canvas", "actions": actions}}
    fields = {f"{axis}t": f"datum.{axis}0 + (datum.{axis}{last} - datum.{axis}0) * slide" for axis in "xy"}
    fields |= {f"rank{i}": RANK.format(i) for i in range(len(titles))} | {"group": "datum[colour]"}
    chart.transform = [alt.CalculateTransform(calculate=made, **{"as": name}) for name, made in fields.items()]
    chart.params = _params(chart, table, groups, titles)
    return chart.configure_view(stroke="#dddddd")


def _params(chart: alt.VConcatChart, table: pd.DataFrame, groups: pd.DataFrame, titles: Sequence[str]) -> list[Any]:
    """What stands below the maps, and what a hand does on the layers whose names begin so."""
    menu = groups.drop_duplicates("by")
    colour = alt.binding_select(options=list(menu["by"]), labels=list(menu["menu"]), name="Colour by ")
    find = alt.BindInput(input="search", name="Find in titles ", debounce=150)
    slide = alt.binding_range(min=0, max=1, step=0.02, name=f"From {titles[0]} to {titles[-1]} ")
    inputs = alt.param("colour", "by0", colour), alt.param("find", "", find), alt.param("slide", 1, slide)
    near = table.sort_values(["kept", "row"]).filter(regex=r"^near\d").iloc[0].to_dict()  # at first, what moved most
    drag = "[pointerdown[{}event.shiftKey], window:pointerup] > window:pointermove!"
    click = "click[event.item && event.item.datum && isValid(event.item.datum.row)]"  # beside them, all stays as it is
    hands = [
        ("points", alt.selection_interval("brush", on=drag.format("!"), zoom=False, resolve="intersect")),
        ("points", alt.selection_point("clicked", fields=list(near), on=click, toggle=False, value=[near])),
        # its layer has fields that all maps share
        ("zoom", alt.selection_interval("zoom", bind="scales", translate=drag.format(""), zoom="wheel!")),
        ("legend", alt.selection_point("picked", fields=["by", "group"])),
    ]
    units = [str(layer.name) for part in chart.vconcat[0].hconcat for layer in part.layer]  # Altair has renamed them
    return [made.param for made in inputs] + [
        alt.TopLevelSelectionParameter(**made.param.to_dict(), views=[unit for unit in units if unit.startswith(on)])
        for on, made in hands
    ]


def _map(i: int, at: int | str, title: str, size: alt.SizeValue) -> alt.LayerChart:
    """Points, thumbnails, and rings around the clicked product and its neighbours, by the fields x and y ``at``."""
    frame = {"axis": None, "scale": alt.Scale(domain=[-4, 104], nice=False, zero=False)}
    place = [alt.X(f"x{at}:Q", **frame), alt.Y(f"y{at}:Q", **frame)]
    points = alt.Chart(name=f"points{i}").mark_point(filled=True, aria=False).encode(*place, *SIGNS, size)
    points = points.encode(opacity=alt.OpacityValue(0.05, condition={"test": LIT, "value": 0.85}))
    pictures = alt.Chart().transform_filter("datum.thumb").transform_filter(LIT).mark_image(width=24, height=24)
    pictures = pictures.encode(*place, alt.Url("image:N"))
    rings = alt.Chart(name=f"zoom{i}").transform_filter(f"datum.rank{i} >= 0")
    rings = rings.transform_calculate(x=f"datum.x{at}", y=f"datum.y{at}").mark_point(color="black", size=140)
    thick = alt.StrokeWidthValue(1.2, condition={"test": f"datum.rank{i} == 0", "value": 3})
    rings = rings.encode(alt.X("x:Q", **frame), alt.Y("y:Q", **frame), strokeWidth=thick)
    return alt.layer(points, pictures, rings, width=SIDE, height=SIDE, title=title)


def _list(i: int, title: str) -> alt.LayerChart:
    """Pictures, titles and classes of the clicked product and of its neighbours in a view."""
    rows = alt.Chart().transform_filter(f"datum.rank{i} >= 0").encode(alt.Y(f"rank{i}:O", axis=None))
    words = rows.mark_text(align="left", limit=SIDE - 34, dy=-6).encode(alt.Text("title:N"), x=alt.value(32))
    label = rows.mark_text(align="left", dy=7, fontSize=9).encode(alt.Text("label:N"), x=alt.value(32))
    pictures = rows.mark_image(width=26, height=26).encode(alt.Url("image:N"), x=alt.value(14))
    title = f"What you clicked, and the nearest in {title}"
    return alt.layer(pictures, words, label, width=SIDE, height=28 * (NEAR + 1), title=title)


def _legend(groups: pd.DataFrame) -> alt.LayerChart:
    base = alt.Chart(_data(groups)).transform_filter("datum.by == colour").encode(alt.Y("group:O", axis=None))
    base = base.encode(opacity=alt.OpacityValue(0.3, condition={"test": PICKED, "value": 1}))
    points = base.mark_point(filled=True, size=90).encode(*SIGNS, x=alt.value(10)).properties(name="legend")
    words = base.mark_text(align="left", limit=190).encode(alt.Text("text:N"), x=alt.value(22))
    return alt.layer(points, words, height=alt.Step(21), width=215, title="Click to select")


def _data(table: pd.DataFrame) -> alt.Data:
    """As text within the chart's own text: nothing of a catalogue can end a script, or be taken for a key."""
    text = table.to_json(orient="records").replace("<", "\\u003c")
    return alt.Data(values=text, format=alt.JsonDataFormat(type="json"))


def _drawn(space: Exploration, most: int) -> pd.DataFrame:
    """Products to draw, a row each."""
    drawn = space.products["label"].sample(frac=1, random_state=0)
    within = drawn.groupby(drawn).cumcount() / drawn.map(drawn.value_counts())  # each class has its share, at least 1
    rows = np.sort(within.sort_values(kind="stable").index[:most])
    table = space.products.loc[rows, ["title", "label", "size"]].rename_axis("row").reset_index()
    embedded = [view.titles[rows] for view in space.views.values()]
    table["image"] = [_address(space.picture(row), 64 if len(rows) <= 2500 else 40) for row in rows]
    table["kept"], apart = kept(embedded[0], embedded[-1], NEAR).round(2), table[table["image"] != ""]
    for i, (view, places) in enumerate(zip(space.views.values(), project(embedded), strict=True)):
        table[[f"x{i}", f"y{i}"]] = places.round(2)
        near = np.column_stack([rows, rows[nearest_rows(embedded[i], embedded[i], NEAR, skip_self=True)[1]]])
        table[f"near{i}"] = [" ".join(map(str, each)) for each in near]
        if view.predicted is not None:
            table[f"said{i}"] = pd.Series(view.predicted[rows], dtype=object).fillna("(not asked)")
        apart = apart[~pd.DataFrame(places[apart.index] // 14).duplicated().to_numpy()]  # one in a square of each map
    return table.assign(thumb=table.index.isin(apart.index))


def _groups(table: pd.DataFrame, titles: list[str]) -> pd.DataFrame:
    """The groups of each way to colour, by the number of their sign; the table gets a column for each way."""
    label, shares = table["label"], ["none", "under a third", "under two thirds", "most", "all"]
    signs = {name: i for i, name in enumerate(label[label != ""].value_counts().index[:8])} | {"other classes": 8}
    ways = {"class": (label.where(label.isin(list(signs)), "other classes"), signs)}
    ways["head or tail"] = table["size"].replace("", "no class"), {"head": 0, "tail": 3, "no class": 8}
    for i, title in enumerate(titles):
        if f"said{i}" in table:
            said = table[f"said{i}"]
            right = np.select([said == "(not asked)", said == label], ["not asked", "right"], "wrong")
            ways[f"right or wrong: {title}"] = pd.Series(right), {"right": 0, "wrong": 3, "not asked": 8}
    step = pd.cut(table["kept"], [-1, 0, 1 / 3, 2 / 3, 0.999, 1], labels=shares).astype(str)
    ways["neighbours kept"] = step, {share: 9 + i for i, share in enumerate(shares)}
    groups = []
    for by, (menu, (values, signs)) in enumerate(ways.items()):
        table[f"by{by}"], count = values.map(signs), values.value_counts()
        groups += [(f"by{by}", menu, signs[name], f"{name} ({count[name]:,})") for name in signs if name in count]
    return pd.DataFrame(groups, columns=["by", "menu", "group", "text"])


def _address(picture: np.ndarray | None, side: int) -> str:
    """A picture as an address that holds it; "" for none."""
    file = io.BytesIO()
    if picture is not None:
        Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS).save(file, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode() if file.tell() else ""


def project(embedded: Sequence[torch.Tensor], k: int = 15) -> np.ndarray:
    """One map for V views of N products, by UMAP (McInnes et al., 2018): positions (V, N, 2), from 0 to 100.

    A row's neighbours are the nearest rows of its own view, and itself in the other views at distance 0, so a product
    stays in its place unless its neighbours pull it away. Distances between far groups mean little."""
    from umap import UMAP  # seconds to import

    n, views, near, distance = len(embedded[0]), len(embedded), [], []
    if n < 5:
        raise ExploreError(f"{n} products; a map needs at least 5")
    for i, rows in enumerate(embedded):
        cosine, found = nearest_rows(rows, rows, k - 1, skip_self=True)
        twins = torch.arange(n)[:, None] + n * ((torch.arange(views) + i) % views)  # itself, and in the other views
        near.append(torch.hstack([twins, found + n * i]))
        distance.append(torch.hstack([torch.zeros(n, views), (1 - cosine).clamp(min=0)]))
    known = torch.cat(near).numpy(), torch.cat(distance).numpy()
    with warnings.catch_warnings(action="ignore"):  # that neighbours came without an index
        umap = UMAP(n_neighbors=known[0].shape[1], random_state=0, n_jobs=1, precomputed_knn=known)
        # The rows themselves only lay out parts of the graph that hang together by nothing.
        found = umap.fit_transform(torch.nn.functional.normalize(embedded[0]).repeat(views, 1).numpy())
    low, high = found.min(axis=0), found.max(axis=0)
    return (50 + 100 * (found - (low + high) / 2) / (high - low).max()).reshape(views, n, 2)


class Live(alt.JupyterChart):
    """A chart of `linked_maps`, alive with no network: a widget in JupyterLab, which tells Python what is selected, and
    a page within the page when a notebook becomes HTML."""

    def __init__(self, chart: alt.VConcatChart) -> None:
        alt.JupyterChart.enable_offline()
        super().__init__(chart)

    @property
    def selected(self) -> pd.DataFrame:
        """The drawn products in the brush (without one: all) and their places; ``row`` is theirs in the exploration."""
        table, slide = pd.DataFrame(json.loads(self.chart.data.values)), self.params.slide
        for axis in "xy":  # of the map that follows the slider
            first, last = table.filter(regex=rf"^{axis}\d").to_numpy().T[[0, -1]]
            table[f"{axis}t"] = first + (last - first) * slide
        for name, (low, high) in (self.selections.brush.value or {}).items():
            table = table[table[name].between(low, high)]
        return table.filter(regex=r"^(row|title|label|[xy]\d)$").sort_values("row", ignore_index=True)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data, metadata = super()._repr_mimebundle_(**options)
        page = html.escape(self.chart.to_html(inline=True))
        frame = f'<iframe srcdoc="{page}" width="100%" height="960" frameborder="0"></iframe>'
        return data | {"text/html": frame}, metadata
