"""Explore embeddings by hand in JupyterLab: linked maps, neighbours, changes, pictures. ``explore`` is the entry.

Everything is computed by ``icssl_lib.explore`` and only drawn here. Titles, labels and names of views are hostile
input: they are set as text, or escaped.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from PIL import Image

from icssl_lib import explore as ask
from icssl_lib.encoders import ModelError
from icssl_lib.explore import Exploration, ExploreError

ASSETS = Path(__file__).parent / "assets"
# Of the largest classes: seaborn's colorblind palette less its grey; dark and light alternate, to be told apart in grey
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#ece133", "#ca9161", "#56b4e9", "#d55e00", "#fbafe4")
GREY = "#c8c8c8"
NEAREST = 8  # cards in a list of neighbours: one row
STEPS = ("#fde725", "#5ec962", "#21918c", "#3b528b", "#440154")  # viridis, light to dark
OTHER, UNKNOWN = "other classes", "no prediction"
HELP = (
    "<b>Hover</b> over a point to see the product; <b>click</b> it for its neighbours; <b>draw</b> around points, with "
    "the lasso button on or after a long press, to see what they share. Wheel and drag zoom and pan. What you do in "
    "one map shows in all. The same place means the same neighbours; distances between far groups mean little."
)


def explore(
    table: pd.DataFrame | Exploration,
    encoders: str | dict[str, str] | None = None,
    *,
    seed: int = 0,
    height: int = 460,
    **options: object,
) -> "Explorer":
    """Linked maps of products, one per encoder, and the questions one can ask of them, as a widget.

    Args:
        table: one row per product with a column title (label, image and id optional); or an `Exploration`, such as
            ``explore.of_study`` makes.
        encoders: for a table, a Hugging Face folder or hub name, or several by the names that the maps shall have.
        seed: of the maps.
        height: of the maps, in pixels.
        options: further arguments of ``explore.of_table``, for a table.

    Raises: ExploreError: as ``explore.of_table``, or a table without an encoder. ModelError: it cannot be loaded.
    """
    if isinstance(table, Exploration):
        if encoders is not None or options:
            raise ExploreError("an exploration has its encoders already; give them with a table")
        space = table
    elif isinstance(table, pd.DataFrame):
        if encoders is None:
            raise ExploreError('name an encoder: explore(table, "sentence-transformers/all-MiniLM-L6-v2")')
        space = ask.of_table(table, encoders, **options)
    else:
        raise ExploreError(f"expected a DataFrame or an Exploration, found {type(table).__name__}")
    return Explorer(space, ask.project(space, seed=seed), height)


class Cards(anywidget.AnyWidget):
    """Products as cards, in groups; a click on a card calls ``chosen`` with the product's position.

    Attributes:
        groups: dicts with heading, note and cards; a card is a dict with position, title, label, note, picture (a
            data address or "") and agrees (a thick frame).
    """

    _esm = ASSETS / "cards.js"
    _css = ASSETS / "cards.css"
    groups = traitlets.List().tag(sync=True)

    def __init__(self, chosen: Callable[[int], None]) -> None:
        super().__init__()
        self.on_msg(lambda _, content, __: chosen(int(content["position"])))


@dataclass
class Colouring:
    """One category per product, and a colour for each category; products of the last are drawn first."""

    values: pd.Categorical
    colours: Sequence[str]

    def __post_init__(self) -> None:
        used = np.flatnonzero(np.bincount(self.values.codes, minlength=len(self.colours)))
        self.colours = [self.colours[i] for i in used]
        self.values = self.values.remove_unused_categories()


class Explorer(ipywidgets.VBox):
    """What `explore` returns. ``selection`` holds the positions of the selected products, and may be set.

    Attributes:
        space: the exploration. positions: name of a view to (N, 2), its map.
        asked: the last product (position) or typed title whose neighbours were listed; None: none yet.
        selected: the products of the selection, as rows of ``space.products``.
    """

    def __init__(self, space: Exploration, positions: dict[str, np.ndarray], height: int = 460) -> None:
        super().__init__()
        self.space, self.positions = space, positions
        self.asked: int | str | None = None
        self._views = list(positions)
        self._shared = [name for name in self._views if space.view(name).share is not None]
        self._colourings = self._known_colourings()
        self._moved: pd.DataFrame | None = None
        self._lit = np.array([], dtype=int)  # selected by a question, not by hand
        self._colour = ipywidgets.Dropdown(options=list(self._colourings), description="Colour by")
        self._query = ipywidgets.Text(
            placeholder="Type a title, or #12 for product 12, and press Enter",
            description="Find",
            continuous_update=False,
            layout={"width": "440px"},
        )
        self._clear = ipywidgets.Button(description="Clear selection", layout={"width": "auto"})
        self._status, self._output = ipywidgets.HTML(), ipywidgets.Output()  # the second for progress bars
        self._legend = ipywidgets.HBox(layout={"flex_flow": "row wrap"})
        self._scatters = [self._scatter(name) for name in self._views]
        self._build(height)
        self._paint()
        self._say(" ".join([f"{len(space.products):,} products.", *space.notes]))
        self._colour.observe(lambda _: self._try(self._paint), "value")
        self._query.observe(lambda change: self._try(self._find, change["new"]), "value")
        self._clear.on_click(lambda _: setattr(self, "selection", []))
        self._tabs.observe(lambda _: self._try(self._show), "selected_index")
        self._scatters[0].widget.observe(lambda _: self._try(self._selection_changed), "selection")
        self._show()

    def __repr__(self) -> str:
        return f"Explorer of {len(self.space.products)} products in {', '.join(self._views)}"

    @property
    def selection(self) -> np.ndarray:
        return np.asarray(self._scatters[0].widget.selection, dtype=int)

    @selection.setter
    def selection(self, positions: Sequence[int]) -> None:
        chosen = np.asarray(positions, dtype=int)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self.space.products)):
            raise ExploreError(f"positions go from 0 to {len(self.space.products) - 1}")
        self._scatters[0].widget.selection = chosen.astype(np.uint32)  # `link` passes it on to the others

    @property
    def selected(self) -> pd.DataFrame:
        return self.space.products.loc[self.selection]

    # --- maps

    def _scatter(self, name: str) -> object:
        """The map of one view, on the axes that all share."""
        import jscatter  # seconds to import

        every = np.concatenate(list(self.positions.values()))
        middle, half = (every.max(axis=0) + every.min(axis=0)) / 2, np.ptp(every, axis=0).max() / 2 * 1.05 or 1.0
        products, predicted = self.space.products, self.space.view(name).predicted
        frame = pd.DataFrame({"x": self.positions[name][:, 0], "y": self.positions[name][:, 1]}).astype(float)
        frame["picture"] = pd.Series("", index=frame.index, dtype=object)
        shown = {"title": products["title"].str.wrap(44, max_lines=4)}
        if (products["label"] != "").any():
            shown["label"] = products["label"]
        if predicted is not None:
            shown["predicted"] = pd.Series(predicted, dtype=object).fillna(f"({UNKNOWN})")
        frame = frame.assign(**shown)
        scatter = jscatter.Scatter(
            "x",
            "y",
            frame,
            x_scale=(middle[0] - half, middle[0] + half),
            y_scale=(middle[1] - half, middle[1] + half),
            axes=False,
            size=float(np.clip(250 / np.sqrt(len(frame)), 2, 7)),
            opacity=0.8,
            opacity_unselected=0.15,
            tooltip=True,
            tooltip_properties=list(shown),
            tooltip_histograms=False,
        )
        if self.space.images is not None:
            scatter.tooltip(preview="picture", preview_type="image", preview_image_size="contain")
            scatter.tooltip(preview_image_height=96)
            scatter.widget.observe(lambda change: self._picture_of_hovered(scatter.widget, change["new"]), "hovering")
        return scatter

    def _picture_of_hovered(self, widget: ipywidgets.DOMWidget, position: int | None) -> None:
        """Pictures are encoded when the mouse is on them: all of 50,000 at once would take half a minute.

        jupyter-scatter sends the preview with the texts, when the mouse has rested; should it have asked before this
        ran, the picture is sent again.
        """
        if position is not None and position >= 0:
            widget.data.at[position, "picture"] = address = self._picture(position)
            widget.send({"type": "tooltip", "index": position, "preview": address, "properties": {}})

    def _picture(self, position: int) -> str:
        """A product's picture as a data address, "" where the catalogue has none."""
        if self.space.images is None:
            return ""
        pixels = io.BytesIO()
        Image.fromarray(self.space.thumbnails([position], side=96)[0]).save(pixels, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(pixels.getvalue()).decode()

    def _build(self, height: int) -> None:
        import jscatter

        maps = jscatter.link(list(zip(self._scatters, map(escape, self._views), strict=True)), row_height=height)
        for column in maps.children:
            column.children[0].layout.margin = "0"  # else JupyterLab sets the first map's title higher than the others'
        self._neighbours = Cards(self._choose)
        self._region = Cards(self._choose)
        self._labels, self._words = ipywidgets.HTML(layout={"margin": "0 48px 0 0"}), ipywidgets.HTML()
        self._sections: dict[str, tuple[ipywidgets.Widget, Callable[[], None]]] = {
            "Neighbours": (self._neighbours, self._show_neighbours),
            "Selection": (
                ipywidgets.VBox([ipywidgets.HBox([self._labels, self._words]), self._region]),
                self._show_region,
            ),
        }
        if len(self._views) > 1:
            self._changed = Cards(self._choose)
            self._sections["Moved most"] = (self._changed, self._show_moved)
        if len(self._views) > 1 and all(self.space.view(name).predicted is not None for name in self._ends):
            self._pairs = ipywidgets.Select(rows=12, layout={"width": "560px"})
            self._confused = Cards(self._choose)
            self._sections["Confused classes"] = (
                ipywidgets.VBox([self._pairs, self._confused]),
                self._show_confusions,
            )
            self._pairs.observe(lambda change: self._try(self._choose_pair, change["new"]), "value")
        if self._shared:
            self._retrieved, self._recall = Cards(self._choose), ipywidgets.HTML()
            self._sections["Titles and pictures"] = (
                ipywidgets.VBox([self._retrieved, self._recall]),
                self._show_retrieval,
            )
        self._tabs = ipywidgets.Tab([section for section, _ in self._sections.values()], titles=list(self._sections))
        self.children = [
            ipywidgets.HTML(HELP),
            ipywidgets.HBox([self._colour, self._query, self._clear], layout={"flex_flow": "row wrap"}),
            self._status,
            self._output,
            maps,
            self._legend,
            self._tabs,
        ]

    @property
    def _ends(self) -> tuple[str, str]:
        """What "before" and "after" mean: the first view and the last."""
        return self._views[0], self._views[-1]

    # --- colours

    def _known_colourings(self) -> dict[str, Callable[[], Colouring]]:
        products, known = self.space.products, {}
        if (products["label"] != "").any():
            known["Class"] = self._by_class
            known["Head or tail"] = lambda: Colouring(
                pd.Categorical(products["size"].replace("", "no label"), ["head", "tail", "no label"]),
                [PALETTE[0], PALETTE[1], GREY],
            )
        if all(self.space.view(name).predicted is not None for name in self._ends):
            known["Right or wrong"] = self._by_prediction
        if len(self._views) > 1:
            known["Movement"] = self._by_movement
        return known or {"Nothing": lambda: Colouring(pd.Categorical(["product"] * len(products)), [PALETTE[0]])}

    def _by_class(self) -> Colouring:
        label = self.space.products["label"]
        counts = label[~label.isin(["", OTHER])].value_counts().sort_index()
        names = list(counts.sort_values(ascending=False, kind="stable").index[: len(PALETTE)])
        values = pd.Categorical(label.where(label.isin(names), OTHER), [*names, OTHER])
        return Colouring(values, [*PALETTE[: len(names)], GREY])

    def _by_prediction(self) -> Colouring:
        label = self.space.products["label"].to_numpy()
        before, after = (self.space.view(name).predicted for name in self._ends)
        asked = pd.notna(before) & pd.notna(after)
        was, now = (np.where(predicted == label, "right", "wrong") for predicted in (before, after))
        if len(self._views) == 1:
            one = pd.Categorical(np.where(asked, now, UNKNOWN), ["wrong", "right", UNKNOWN])
            return Colouring(one, [PALETTE[6], PALETTE[5], GREY])
        names = ["wrong, then right", "right, then wrong", "wrong in both", "right in both", UNKNOWN]
        both = np.where(was == now, np.char.add(now, " in both"), np.char.add(np.char.add(was, ", then "), now))
        colours = [PALETTE[0], PALETTE[6], "#000000", "#9fd3f3", "#e4e4e4"]
        return Colouring(pd.Categorical(np.where(asked, both, UNKNOWN), names), colours)

    def _by_movement(self) -> Colouring:
        """The share of neighbours that stayed, in steps from all to none."""
        kept = self._movement().set_index("position")["kept"].sort_index().to_numpy()
        names = ["no neighbour stayed", "under a third stayed", "up to two thirds", "most stayed", "all stayed"]
        step = np.searchsorted([0, 1 / 3, 2 / 3, 1 - 1e-9], kept, side="left")
        return Colouring(pd.Categorical.from_codes(step, names), STEPS[::-1])

    def _movement(self) -> pd.DataFrame:
        if self._moved is None:
            self._say("Comparing every product's neighbours ...")
            self._moved = ask.moved(self.space, *self._ends)
            self._say("")
        return self._moved

    def _paint(self) -> None:
        colouring = self._colourings[self._colour.value]()
        codes = colouring.values.codes
        for scatter in self._scatters:
            scatter.color(by=colouring.values, map=list(colouring.colours))
            scatter.order(by=np.argsort(-codes, kind="stable"))
        counts = np.bincount(codes, minlength=len(colouring.colours))
        self._legend.children = [
            self._legend_button(str(name), int(count), colour, np.flatnonzero(codes == code))
            for code, (name, count, colour) in enumerate(
                zip(colouring.values.categories, counts, colouring.colours, strict=True)
            )
        ]

    def _legend_button(self, name: str, count: int, colour: str, positions: np.ndarray) -> ipywidgets.Button:
        """An entry of the legend; a click selects its products, so that colour alone need not tell them."""
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        button = ipywidgets.Button(
            description=f"{name[:32]} ({count:,})",
            tooltip=f"Select {name}",
            style={"button_color": colour, "text_color": "white" if dark else "black"},
            layout={"width": "auto"},
        )
        button.on_click(lambda _: setattr(self, "selection", positions))
        return button

    # --- what people do

    def _try(self, do: Callable[..., None], *arguments: object) -> None:
        """Errors of a question belong on the screen: an exception in a callback is seen by nobody."""
        self._output.outputs = ()
        with self._output:
            try:
                do(*arguments)
            except (ExploreError, ModelError) as error:
                self._say(str(error))

    def _say(self, text: str) -> None:
        self._status.value = escape(text)

    def _find(self, typed: str) -> None:
        """A typed title, or "#12"; its neighbours are listed, and light up in the maps."""
        typed = typed.strip()
        if not typed:
            return
        if typed.startswith("#") and typed[1:].strip().isdecimal():
            self._choose(int(typed[1:]))
            return
        self.asked = typed
        near = [ask.neighbours(self.space, name, typed, NEAREST)["position"] for name in self._views]
        self._light_up(np.unique(np.concatenate(near)))
        if self._opened not in ("Neighbours", "Titles and pictures"):
            self._open("Neighbours")
        else:
            self._show()

    def _choose(self, position: int) -> None:
        self._lit = np.array([], dtype=int)
        if len(self.selection) == 1 and self.selection[0] == position:
            self._selection_changed()  # nothing changed that the maps would tell
        else:
            self.selection = [position]

    def _choose_pair(self, number: int | None) -> None:
        """A pair of confused classes: the products that either view's classifier took for the other class."""
        if number is None:
            return
        pair = self._confusions.iloc[number]
        label, guesses = self.space.products["label"], [self.space.view(name).predicted for name in self._ends]
        wrong = [np.flatnonzero((label == pair["label"]) & (guess == pair["predicted"])) for guess in guesses]
        self._confused.groups = [
            self._group(f"{name} took these {pair['label']} for {pair['predicted']}", rows[:12], note=f"{len(rows)}")
            for name, rows in zip(self._ends, wrong, strict=True)
        ]
        self._light_up(np.union1d(*wrong))

    def _light_up(self, positions: np.ndarray) -> None:
        self._lit = positions
        self.selection = positions

    def _selection_changed(self) -> None:
        """By hand: one product opens its neighbours, several open what sets them apart."""
        chosen, wanted = self.selection, self._opened
        self._say(f"{len(chosen):,} products are selected." if len(chosen) else "")
        if len(chosen) and np.array_equal(chosen, self._lit):
            return  # who lit them shows what they are
        if len(chosen) == 1:
            self.asked = int(chosen[0])
            self._say(f"Product #{self.asked}: {self.space.products['title'][self.asked]}")
            wanted = wanted if wanted == "Titles and pictures" else "Neighbours"
        elif len(chosen):
            wanted = "Selection"
        if wanted == self._opened:
            self._show()
        else:
            self._open(wanted)

    # --- what they see

    @property
    def _opened(self) -> str:
        return list(self._sections)[self._tabs.selected_index or 0]

    def _open(self, section: str) -> None:
        self._tabs.selected_index = list(self._sections).index(section)

    def _show(self) -> None:
        """Draw the open section; the others wait until they are opened."""
        _, show = self._sections[self._opened]
        show()

    def _group(
        self, heading: str, rows: Sequence[int] | pd.DataFrame, note: str = "", notes: Sequence[str] = (), own: str = ""
    ) -> dict[str, object]:
        """A group of cards: products by position, or from a table of ``explore``."""
        positions = rows["position"] if isinstance(rows, pd.DataFrame) else rows
        if isinstance(rows, pd.DataFrame) and "similarity" in rows:
            notes = [f"#{row.position} · {row.similarity:.2f}" for row in rows.itertuples()]
        notes = notes or [f"#{position}" for position in positions]
        products = self.space.products
        cards = [
            {
                "position": int(position),
                "title": products["title"][position],
                "label": products["label"][position],
                "picture": self._picture(position),
                "note": text,
                "agrees": bool(own) and products["label"][position] == own,
            }
            for position, text in zip(positions, notes, strict=True)
        ]
        return {"heading": heading, "note": note, "cards": cards}

    def _show_neighbours(self) -> None:
        if self.asked is None:
            note = "Click a point or a card, or type a title above."
            self._neighbours.groups = [{"heading": "Whose neighbours?", "note": note, "cards": []}]
            return
        groups, own = self._asked_group()
        for name in self._views:
            near = ask.neighbours(self.space, name, self.asked, NEAREST)
            note = f"{(near['label'] == own).sum()} of {len(near)} have its label (thick frame); " if own else ""
            groups.append(self._group(f"Nearest titles in {name}", near, f"{note}number and cosine below.", own=own))
        self._neighbours.groups = groups

    def _asked_group(self) -> tuple[list[dict[str, object]], str]:
        """The product whose neighbours are listed, at their left, and its label."""
        if isinstance(self.asked, str):
            return [], ""
        group = self._group("This product", [self.asked])
        return [group | {"aside": True}], self.space.products["label"][self.asked]

    def _show_region(self) -> None:
        if not len(self.selection):
            note = "Draw around points with the lasso button on, or click an entry of the legend."
            self._region.groups = [{"heading": "Nothing is selected", "note": note, "cards": []}]
            self._labels.value = self._words.value = ""
            return
        found = ask.region(self.space, self.selection)
        labels = found["labels"].assign(**{c: found["labels"][c].map("{:.0%}".format) for c in ("share", "elsewhere")})
        words = found["words"].assign(lift=found["words"]["lift"].map("{:.1f}x".format))
        self._labels.value = _table("Labels that stand out", labels.drop(columns="z").head(12))
        self._words.value = _table("Words that stand out", words.drop(columns="z").head(12))
        note = f"The first 24 of {len(self.selection):,}." if len(self.selection) > 24 else ""
        self._region.groups = [self._group("Selected products", found["titles"].head(24), note)]

    def _show_moved(self) -> None:
        if not self._changed.groups:
            before, after = self._ends
            table = self._movement().head(24)
            note = (
                f"Fewest of their 10 nearest in {before} are among the 10 nearest in {after} (number and share that "
                "stayed below). Click one to find it in all maps."
            )
            notes = [f"#{row.position} · {row.kept:.0%}" for row in table.itertuples()]
            self._changed.groups = [self._group("Products that changed their neighbours", table, note, notes)]

    def _show_confusions(self) -> None:
        if not self._pairs.options:
            before, after = self._ends
            self._confusions = ask.confusions(self.space, before, after).head(200)
            self._pairs.options = [
                (f"{row.label} taken for {row.predicted}: {row.before} in {before}, {row.after} in {after}", i)
                for i, row in enumerate(self._confusions.itertuples())
            ]

    def _show_retrieval(self) -> None:
        self._say("Embedding the pictures ...")
        if self.asked is None:
            note = "Click a point for the titles nearest to its picture, or type a title for the nearest pictures."
            groups = [{"heading": "Which title, which picture?", "note": note, "cards": []}]
        else:
            groups, own = self._asked_group()
            title = self.space.products["title"][self.asked] if groups else self.asked
            pictured = bool(groups) and self.space.products["image_row"][self.asked] >= 0
            for name in self._shared:
                if pictured:
                    near = ask.titles_of(self.space, name, self.asked, NEAREST)
                    groups.append(self._group(f"Titles nearest to its picture, {name}", near, own=own))
                near = ask.pictures_of(self.space, name, title, NEAREST)
                groups.append(self._group(f"Pictures nearest to “{title}”, {name}", near, own=own))
        self._retrieved.groups = groups
        if not self._recall.value and (self.space.products["part"] == "dev").any():
            tables = [ask.recall(self.space, name).assign(view=name) for name in self._shared]
            table = pd.concat(tables)[["view", "direction", "k", "recall", "chance", "n"]]
            table = table.assign(**{c: table[c].map("{:.1%}".format) for c in ("recall", "chance")})
            self._recall.value = _table("Recall among the k nearest of Dev", table)
        self._say("")


def _table(heading: str, table: pd.DataFrame) -> str:
    return f"<b>{escape(heading)}</b>{table.to_html(index=False, border=0, escape=True, classes='icssl-table')}"
