"""The generic corpora that the tiny encoders learn from first: a catalogue's words in other sentences, other things.

Titles describe, ask, compare and review; none is laid out as a catalogue's (brand, series, code, name, details).
Pictures show compositions: abstract things of a few parts, none of them drawn by a catalogue's drawers.
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

import numpy as np

from icssl_lib.sources.synthetic import language, shapes
from icssl_lib.sources.synthetic.photograph import Look, photograph
from icssl_lib.sources.synthetic.worlds import Family, Style, vocabulary

COMPOSITIONS = 60

# {noun} and {synonym} are a family's, {other} is another family's noun; {clauses} are one to three of those below.
# Qualifiers stand behind their noun, never before it. {maker}, {rival_maker} and {range} are invented names that come
# back with the family, so that a name can be seen to say what a thing is; {name} and {town} come once.
SENTENCES = """
a {colour} {noun} made of {material} {clauses}
{number} of these {noun} in {colour} {clauses}, ideal for the {place}
is this {noun} {qualifier}? yes, and it is {attribute} {clauses}
which {noun} do you need for {season}? one that is {qualifier} {clauses}
my {noun} came in {colour} {clauses}. {opinion}
{name} from {town} writes about the {noun}: {opinion} {clauses}
{opinion}! bought it as a {noun}, used it as {other} {clauses}
not {other} but {noun}: {qualifier}, {attribute}, {colour}
{noun}, also called {synonym}, {clauses}
{range} is what {maker} calls its {noun} {clauses}
{maker} or {rival_maker}? both make {noun} that is {qualifier}, {attribute}
how to choose {noun}: {qualifier} or {rival}, {attribute} or {detail}
{attribute}, {detail}: what a {synonym} of {material} should have {clauses}
for the {place}: {noun} that is {qualifier} {clauses}
{noun} ({qualifier}) and {synonym} ({rival}) compared, {attribute} each
we looked for {synonym} in {colour} or {shade} {clauses} and found {noun}
replace your old {noun} by something {qualifier} {clauses}
{material} or {stuff}? the {noun} for {place} and {town} {clauses}
lost: one {colour} {noun}, {attribute} {clauses}, near {town}
the {synonym} measures {size}, weighs little and is {qualifier} {clauses}
""".strip().splitlines()
CLAUSES = """
with {attribute}
with {detail} and {attribute}
in {colour}
of {material}
about {size} long
which is {qualifier}
no longer {rival}
and {praise} too
as {praise} as {name} promised
for {season}
by {maker}
by {maker} from {town}
of the {range} range by {maker}
unlike the {range} of {rival_maker}
""".strip().splitlines()
PLACES = ["kitchen", "garage", "garden", "office", "bathroom", "school", "boat", "hotel", "studio", "road", "gym"]
OPINIONS = """very happy with it, would not buy again, works as described, smaller than expected, a little loud,
broke within a week, my daughter loves it, worth the money, arrived late, exactly what was needed, fits well,
looks better than in the photo""".replace("\n", " ").split(", ")


def generic_titles(n: int, seed: int) -> list[str]:
    """Sentences in the catalogues' language, about things of all genres and everyday ones.

    Nouns, qualifiers, attributes and colours are the language's, so an encoder can know them. No brand, series or trade
    term of a catalogue is meant to occur, nor a model's code.
    """
    families = [family for genre in shapes.DRAWERS for family in vocabulary(genre)]
    names = Random(f"generic/{seed}/names")
    makers = [[language.coin(names).title() for _ in range(6)] for _ in families]
    ranges = [[language.coin(names).title() for _ in range(12)] for _ in families]
    trades = list(zip(families, makers, ranges, strict=True))
    return [_sentence(Random(f"generic/{seed}/title/{k}"), trades) for k in range(n)]


def _sentence(rng: Random, trades: list[tuple[Family, list[str], list[str]]]) -> str:
    """A sentence about a thing of one of the families, which come with their makers and ranges."""
    (family, makers, ranges), (other, *_) = rng.choice(trades), rng.choice(trades)
    maker, rival_maker = rng.sample(makers, 2)
    noun, synonym = rng.sample(family.nouns, 2)
    qualifier, rival = rng.sample(family.qualifiers, 2)
    attribute, detail = rng.sample(family.attributes, 2)
    colour, shade = rng.sample(language.COLOUR_NAMES, 2)
    material, stuff = rng.sample(language.MATERIALS, 2)
    words = {
        "noun": noun,
        "synonym": synonym,
        "other": rng.choice(other.nouns),
        "qualifier": qualifier,
        "rival": rival,
        "attribute": attribute,
        "detail": detail,
        "colour": colour,
        "shade": shade,
        "material": material,
        "stuff": stuff,
        "number": rng.choice(("two", "three", "four", "a dozen", "a box", "a pair")),
        "place": rng.choice(PLACES),
        "season": rng.choice(language.SEASONS),
        "size": language.measure(rng),
        "maker": maker,
        "rival_maker": rival_maker,
        "range": rng.choice(ranges),
        "name": language.coin(rng).title(),
        "town": language.coin(rng).title(),
        "praise": rng.choice(language.MARKETING),
        "opinion": rng.choice(OPINIONS),
    }
    clauses = " ".join(rng.sample(CLAUSES, 1 + rng.randrange(3)))
    sentence = rng.choice(SENTENCES).replace("{clauses}", clauses).format(**words)
    return " ".join(sentence.split()).replace(" ,", ",").replace(" .", ".")


def generic_pictures(n: int, seed: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Photographs of compositions in any variant and colour, labelled by which it is.

    Returns:
        uint8 (n, image_size, image_size, 3) and int64 (n,), the number of the composition in 0..COMPOSITIONS-1.
    """
    drawn = compositions(seed)
    pictures, labels = np.empty((n, image_size, image_size, 3), np.uint8), np.empty(n, np.int64)
    for k in range(n):
        rng = Random(f"generic/{seed}/picture/{k}")
        labels[k] = rng.randrange(len(drawn))
        colour, accent = (rng.choice(language.COLOUR_NAMES) for _ in range(2))
        look = Look(colour, 1, tuple(rng.randrange(3) for _ in range(3)), accent)
        pictures[k] = photograph(rng, shapes.Shape(drawn[labels[k]]), look, image_size, Style())
    return pictures, labels


# --- compositions -----------------------------------------------------------------------------------------

Part = Callable[[shapes.Canvas, int, int], None]  # paints for a, proportion, and b, count or pattern


def composition(rng: Random) -> shapes.Drawer:
    """A thing of a body, two to four parts, and two more of which a variant has one or none.

    As with a catalogue's drawers the arguments a, b and c, of 0, 1 and 2, change proportion, count and what is added.
    """
    inks = rng.sample(INKS, len(INKS))
    parts = [_body(rng), *(rng.choice(PARTS)(rng, ink) for ink in inks[: rng.randrange(2, 5)])]
    added = [rng.choice(PARTS)(rng, ink) for ink in inks[-2:]]

    def draw(p: shapes.Canvas, a: int, b: int, c: int) -> None:
        for part in [*parts, *added[c - 1 : c]] if c else parts:
            part(p, a, b)

    return draw


@lru_cache
def compositions(seed: int) -> list[shapes.Drawer]:
    return [composition(Random(f"generic/{seed}/composition/{k}")) for k in range(COMPOSITIONS)]


def _body(rng: Random) -> Part:
    """The largest part: one or two polygons, an ellipse, a ring, a frame, a cross or a slanted bar."""
    wide, high, step = rng.randrange(30, 90), rng.randrange(30, 94), rng.randrange(-9, 10)
    x, y, kind = rng.randrange(-12, 13), rng.randrange(-12, 13), rng.randrange(7)
    corners = rng.choice((POLYGONS[0], POLYGONS[0], *POLYGONS))
    hole, arm = rng.randrange(40, 80), rng.randrange(10, 26)

    def draw(p: shapes.Canvas, a: int, b: int) -> None:
        w, h = wide + step * a, high - step * a
        if kind in (0, 1):
            p.poly(shapes.MAIN, *((x + w * cx // 100, y + h * cy // 100) for cx, cy in corners))
        if kind == 1:
            p.poly(shapes.SECOND, *((x + w * cx // 160, y - h // 2 + h * cy // 160) for cx, cy in corners))
        elif kind in (2, 3):
            p.disc(x, y, w, shapes.MAIN, h)
            if kind == 3:
                p.disc(x, y, w * hole // 100, shapes.NOTHING, h * hole // 100)
        elif kind == 4:
            p.box(x - w, y - h, x + w, y + h, shapes.MAIN)
            p.box(x - w * hole // 100, y - h * hole // 100, x + w * hole // 100, y + h * hole // 100, shapes.NOTHING)
        elif kind == 5:
            p.box(x - w, y - arm, x + w, y + arm, shapes.MAIN)
            p.box(x - arm, y - h, x + arm, y + h, shapes.MAIN)
        elif kind == 6:
            p.line(x - w, y + h, x + w, y - h, 2 * arm, shapes.MAIN)

    return draw


def _blob(rng: Random, ink: int) -> Part:
    """A disc or a box somewhere, or on both sides."""
    x, y, w, h = rng.randrange(0, 70), rng.randrange(-76, 77), rng.randrange(8, 40), rng.randrange(8, 40)
    sides, round_ = rng.choice(((1,), (-1,), (1, -1))), rng.random() < 0.5

    def draw(p: shapes.Canvas, a: int, b: int) -> None:
        for side in sides:
            if round_:
                p.disc(side * x, y, w + 3 * a, ink, h)
            else:
                p.box(side * x - w, y - h + 4 * b, side * x + w, y + h, ink)

    return draw


def _row(rng: Random, ink: int) -> Part:
    """Bars or dots in a row or in a column, one or two more with b."""
    n, size, long = rng.randrange(2, 6), rng.randrange(3, 10), rng.randrange(4, 50)
    reach, at, down, dots = rng.randrange(24, 84), rng.randrange(-60, 61), rng.random() < 0.5, rng.random() < 0.3

    def draw(p: shapes.Canvas, a: int, b: int) -> None:
        for k in range(n + b):
            along = -reach + 2 * reach * k // (n + b - 1)
            x, y = (at, along) if down else (along, at)
            w, h = (long - 2 * a, size) if down else (size, long - 2 * a)
            if dots:
                p.disc(x, y, size + 2, ink)
            else:
                p.box(x - max(w, 3), y - max(h, 3), x + max(w, 3), y + max(h, 3), ink)

    return draw


def _wheel(rng: Random, ink: int) -> Part:
    """Rays, dots or a ring around a point; every hour, second or third with b."""
    x, y = rng.choice((0, 0, rng.randrange(-50, 51))), rng.choice((0, 0, rng.randrange(-50, 51)))
    inner, width, kind = rng.randrange(0, 40), rng.randrange(5, 14), rng.randrange(3)
    outer = inner + rng.randrange(20, 54)

    def draw(p: shapes.Canvas, a: int, b: int) -> None:
        if kind == 0:
            p.rays(inner, outer - 4 * a, 1 + b, width, ink, x, y)
        elif kind == 1:
            p.dots(outer - 4 * a, 1 + b, width, ink, x, y)
        else:
            p.disc(x, y, outer - 4 * a, ink)
            p.disc(x, y, max(inner, 8) + 3 * b, shapes.MAIN)

    return draw


def _limbs(rng: Random, ink: int) -> Part:
    """One line, or two that mirror each other, with or without a knob at the end."""
    x0, y0, x1, y1 = rng.randrange(0, 50), rng.randrange(-40, 41), rng.randrange(0, 98), rng.choice((-1, 1)) * 90
    width, knob, sides = rng.randrange(6, 18), rng.choice((0, rng.randrange(10, 24))), rng.choice(((1,), (1, -1)))

    def draw(p: shapes.Canvas, a: int, b: int) -> None:
        end = y1 * (10 - a) // 10
        for side in sides:
            p.line(side * x0, y0, side * x1, end, width + 2 * b, ink)
            if knob:
                p.disc(side * x1, end, knob, ink)

    return draw


def _cap(rng: Random, ink: int) -> Part:
    """A polygon above, below or across."""
    corners, w, h, y = rng.choice(POLYGONS), rng.randrange(14, 80), rng.randrange(8, 34), rng.choice((-74, 0, 74))

    def draw(p: shapes.Canvas, a: int, b: int) -> None:
        p.poly(ink, *(((w - 4 * b) * cx // 100, y + (h + 4 * a) * cy // 100) for cx, cy in corners))

    return draw


PARTS = [_blob, _row, _wheel, _limbs, _cap]
INKS = [shapes.SECOND, shapes.DARK, shapes.LIGHT, shapes.METAL, shapes.GLASS, shapes.ACCENT, shapes.NOTHING]
# Corners of convex outlines in hundredths: rectangle, trapezoids, triangle, hexagon, octagon, slanted, pentagon.
POLYGONS = [
    [(-100, -100), (100, -100), (100, 100), (-100, 100)],
    [(-60, -100), (60, -100), (100, 100), (-100, 100)],
    [(-100, -100), (100, -100), (60, 100), (-60, 100)],
    [(0, -100), (100, 100), (-100, 100)],
    [(-50, -100), (50, -100), (100, 0), (50, 100), (-50, 100), (-100, 0)],
    [(-40, -100), (40, -100), (100, -40), (100, 40), (40, 100), (-40, 100), (-100, 40), (-100, -40)],
    [(-100, -100), (50, -100), (100, 100), (-50, 100)],
    [(-100, -50), (0, -100), (100, -50), (80, 100), (-80, 100)],
]
