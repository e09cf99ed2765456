"""Linked maps on the screen, for the tests: what is drawn where, read from the chart's own scene, and a mouse."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from playwright.sync_api import Frame, Page

# Keep each chart's view, of this page and of a page within it.
CATCH = """(() => { let embed; Object.defineProperty(window, "vegaEmbed", {get: () => embed, set: f => {
  embed = (...given) => f(...given).then(done => { window.view = done.view; return done; }); }}); })()"""
# Marks by name, with what each is of and where it stands on the canvas.
MARKS = """() => { const found = {}, walk = (group, x, y) => group.items.forEach(mark =>
  mark.marktype === "group" ? mark.items.forEach(g => walk(g, x + (g.x || 0), y + (g.y || 0)))
  : (found[mark.name] ??= []).push(...mark.items.map(i => ({x: x + i.x, y: y + i.y, row: i.datum?.row,
      lit: i.opacity > 0.5, text: i.text, url: i.url}))));
  walk(view.scenegraph().root.items[0], view.origin()[0] + view.padding().left, view.origin()[1] + view.padding().top);
  return found; }"""


def marks(frame: "Frame", name: str) -> pd.DataFrame:
    """The marks whose name begins so, after what is under way."""
    frame.evaluate("() => view.runAsync().then(() => 0)")
    return pd.DataFrame([m for key, made in frame.evaluate(MARKS).items() if key.startswith(name) for m in made])


def lit(frame: "Frame", i: int) -> set[int]:
    points = marks(frame, f"points{i}")
    return set(points["row"][points["lit"]])


def middle_third(points: pd.DataFrame) -> tuple[float, float, float, float]:
    """A box around the third of the points whose x is in the middle."""
    low, high = points["x"].quantile([1 / 3, 2 / 3])
    return low, points["y"].min() - 5, high, points["y"].max() + 5


def alone(points: pd.DataFrame) -> pd.Series:
    """The point that lies farthest from all others."""
    away = np.hypot(*(np.subtract.outer(points[a].to_numpy(), points[a].to_numpy()) for a in "xy"))
    np.fill_diagonal(away, np.inf)
    return points.iloc[away.min(axis=1).argmax()]


class Maps:
    """Linked maps on the screen: a page, or a frame within it."""

    def __init__(self, page: "Page", frame: "Frame") -> None:
        self.page, self.frame, self.canvas = page, frame, frame.locator("canvas").first
        frame.wait_for_function("window.view")

    def at(self, x: float, y: float) -> tuple[float, float]:
        box = self.canvas.bounding_box()
        return float(box["x"] + x), float(box["y"] + y)

    def drag(self, left: float, top: float, right: float, bottom: float) -> None:
        self.page.mouse.move(*self.at(left, top))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((left + right) / 2, (top + bottom) / 2))
        self.page.mouse.move(*self.at(right, bottom))
        self.page.mouse.up()
