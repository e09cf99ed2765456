"""Photographs of products: view, background, packaging, clutter; integers and seeded draws alone."""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from icssl_lib.sources.synthetic import language, shapes
from icssl_lib.sources.synthetic.worlds import Style


@dataclass(frozen=True)
class Look:
    """What the title and the picture of one product both may show."""

    colour: str
    pack: int
    variant: tuple[int, ...]
    accent: str


_grid = lru_cache(maxsize=2)(shapes.grid)
# (cos, sin, length) of exact turns: none, and about 14, 19, 28 and 37 degrees.
_TURNS = ((1, 0, 1), (63, 16, 65), (35, 12, 37), (15, 8, 17), (4, 3, 5))
_FAR = 10**4  # outside of every drawing


def photograph(rng: Random, shape: shapes.Shape, look: Look, size: int, style: Style) -> np.ndarray:
    """Photograph one product, uint8 (size, size, 3): view, background, box, pack, clutter, or a placeholder."""
    chance = rng.random
    x, y = _grid(size)
    scene = shapes.Canvas(x, y)
    if chance() < 0.03:  # no photograph: the brand's sign
        scene.disc(0, 0, 60, shapes.CLUTTER, 40)
        scene.box(-34, -8, 34, 8, shapes.LIGHT)
    else:
        scene.inks = _view(rng, shape, look, x, y)
        if chance() < 0.2:  # something in the way, or beside
            for _ in range(1 + rng.randrange(2)):
                left, top, width, height = (rng.randrange(-100, 70), rng.randrange(-100, 70), *_several(rng, 15, 70, 2))
                if chance() < 0.5:
                    scene.box(left, top, left + width, top + height, shapes.CLUTTER)
                else:
                    scene.disc(left, top, width // 2, shapes.CLUTTER)
        if chance() < 0.12:  # a sticker of the shop
            scene.disc(70, -70, 26, shapes.ACCENT)
            scene.box(58, -74, 82, -66, shapes.LIGHT)
    tinted, floor = chance() < 0.3, chance() < 0.2
    background = style.behind(_several(rng, 180, 256, 3) if tinted else _several(rng, 246, 256, 3))
    if style.stripe:
        across = x if style.upright else y
        scene.inks[(scene.inks == shapes.NOTHING) & (across // (8 * style.stripe) % 2 == 1)] = shapes.FLOOR
    if floor:
        scene.inks[(scene.inks == shapes.NOTHING) & (scene.v > 8 * style.floor)] = shapes.FLOOR
    names = (look.colour, rng.choice(language.COLOUR_NAMES), look.accent)
    main, second, accent = (language.COLOURS[name] for name in names)
    dark, light, metal, glass = (40, 40, 44), (232, 232, 232), (158, 164, 172), (150, 200, 225)
    inks = [main, second, dark, light, metal, glass, accent, _several(rng, 90, 240, 3)]
    inks = [style.lit(colour) for colour in inks]
    # No two photographs have quite the same colours.
    inks = [[min(255, max(0, part + rng.randrange(-14, 15))) for part in colour] for colour in inks]
    colours = [background, *inks, [part * 3 // 4 for part in background]]
    return shapes.paint(scene.inks, colours, rng.randrange(style.fade))


def _several(rng: Random, low: int, high: int, n: int) -> list[int]:
    return [rng.randrange(low, high) for _ in range(n)]


def _view(rng: Random, shape: shapes.Shape, look: Look, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The product's inks as seen: shifted, mirrored, turned, stretched; in a pack or a box or neither."""
    chance = rng.random
    cos, sin, length = rng.choices(_TURNS, cum_weights=(75, 85, 93, 98, 100))[0]
    sin *= rng.choice((-1, 1))
    width = rng.randrange(76, 106)  # per cents
    height = width + rng.randrange(-8, 9)
    dx, dy = x - 8 * rng.randrange(-10, 11), y - 8 * rng.randrange(-10, 11)
    u, v = (dx * cos + dy * sin, dy * cos - dx * sin) if sin else (dx, dy)
    u, v = u * 100 // (length * width), v * 100 // (length * height)
    if chance() < 0.5:
        u = -u
    if chance() < 0.05:
        u, v = v, -u
    if look.pack > 1 and chance() < 0.8:  # two side by side, or two by two
        u = np.where(abs(u) < 800, 2 * (u % 800) - 800, _FAR)
        v = np.where(abs(v) < 800, 2 * (v % 800) - 800, _FAR) if look.pack == 4 else 3 * v // 2
    if chance() >= 0.1:
        return shape.draw(u, v, look.variant)
    box, thing = shapes.Canvas(u, v), shape.draw(5 * u // 3, 5 * v // 3, look.variant)
    box.box(-80, -90, 80, 90, shapes.SECOND)
    box.box(-66, -64, 66, 64, shapes.LIGHT)
    return np.where((thing > 0) & (box.inks == shapes.LIGHT), thing, box.inks)
