"""Pictures of things: parametric drawers on a small raster, in integer arithmetic only.

Every pixel is decided by comparing integers, so a picture has the same bytes on every platform. (Pillow's own
polygons go through float32 slopes, which compilers may round differently.) A drawer works in design units,
x to the right and y down, both -100..100, and paints inks, not colours; ``paint`` maps inks to colours.
Its arguments a, b, c are 0, 1 or 2 and tell sister types apart: proportion, count or pattern, an extra part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

NOTHING, MAIN, SECOND, DARK, LIGHT, METAL, GLASS, ACCENT, CLUTTER, FLOOR = range(10)
_UNIT = 8  # raster coordinates per design unit
# Twelve directions, in hundredths: the hours of a clock, from three o'clock on.
_HOURS = [(100, 0), (87, 50), (50, 87), (0, 100), (-50, 87), (-87, 50)]
_HOURS += [(-x, -y) for x, y in _HOURS]


class Canvas:
    """Inks (n, n) at raster points (u, v), in 1/8 design units; a row and a column do for an upright thing."""

    def __init__(self, u: np.ndarray, v: np.ndarray) -> None:
        self.u, self.v = u.astype(np.int32), v.astype(np.int32)
        self.inks = np.zeros(np.broadcast_shapes(u.shape, v.shape), np.uint8)

    def box(self, x0: int, y0: int, x1: int, y1: int, ink: int) -> None:
        x0, y0, x1, y1 = (_UNIT * value for value in (x0, y0, x1, y1))
        self._fill((self.u >= x0) & (self.u < x1) & ((self.v >= y0) & (self.v < y1)), ink)

    def disc(self, x: int, y: int, rx: int, ink: int, ry: int | None = None) -> None:
        """An ellipse; a circle where ``ry`` is None."""
        du, dv = self.u - _UNIT * x, self.v - _UNIT * y
        if ry is None or rx == ry:
            self._fill(du * du + dv * dv < (_UNIT * rx) ** 2, ink)
        else:
            du, dv = du * np.int64(ry), dv * np.int64(rx)
            self._fill(du * du + dv * dv < (_UNIT * rx * ry) ** 2, ink)

    def poly(self, ink: int, *points: tuple[int, int]) -> None:
        """A convex polygon, its corners in either sense of rotation."""
        pairs = list(zip(points, (*points[1:], points[0]), strict=True))
        sense = 1 if sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) > 0 else -1
        inside = np.ones(self.inks.shape, bool)
        for (x0, y0), (x1, y1) in pairs:
            dx, dy = sense * (x1 - x0), sense * (y1 - y0)
            inside &= self.v * dx - self.u * dy >= _UNIT * (y0 * dx - x0 * dy)
        self._fill(inside, ink)

    def _fill(self, where: np.ndarray, ink: int) -> None:
        np.copyto(self.inks, np.uint8(ink), where=where)

    def line(self, x0: int, y0: int, x1: int, y1: int, width: int, ink: int) -> None:
        dx, dy = x1 - x0, y1 - y0
        length = isqrt(dx * dx + dy * dy) or 1
        nx, ny = -dy * width // (2 * length), dx * width // (2 * length)
        self.poly(ink, (x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))

    def rays(self, inner: int, outer: int, step: int, width: int, ink: int, x: int = 0, y: int = 0) -> None:
        """Lines from the centre (x, y), at every ``step``-th hour of a clock."""
        for cos, sin in _HOURS[::step]:
            ends = (x + cos * inner // 100, y + sin * inner // 100, x + cos * outer // 100, y + sin * outer // 100)
            self.line(*ends, width, ink)

    def dots(self, radius: int, step: int, size: int, ink: int, x: int = 0, y: int = 0) -> None:
        """Discs on a circle around (x, y), at every ``step``-th hour of a clock."""
        for cos, sin in _HOURS[::step]:
            self.disc(x + cos * radius // 100, y + sin * radius // 100, size, ink)


# --- automotive -------------------------------------------------------------------------------------------


def tyre(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, 0, 92, DARK)
    p.rays(74, 93, 1 + b, 9, METAL)
    p.disc(0, 0, 76, DARK)
    p.disc(0, 0, 62 - 10 * a, LIGHT if c == 1 else METAL)
    p.disc(0, 0, 54 - 10 * a, METAL if c else NOTHING)
    if c == 2:
        p.rays(10, 34, 3, 10, DARK)


def rim(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, 0, 90, MAIN if c == 1 else METAL)
    p.disc(0, 0, 78, DARK)
    p.rays(0, 82, (3, 2, 1)[b], (26, 16, 10)[a] - 4 * b // 2, METAL)
    p.disc(0, 0, 24, METAL)
    p.disc(0, 0, 12, MAIN if c == 2 else DARK)


def headlamp(p: Canvas, a: int, b: int, c: int) -> None:
    if a == 0:
        p.disc(0, 0, 80, MAIN)
        p.disc(0, 0, 68, GLASS)
    elif a == 1:
        p.box(-92, -50, 92, 50, MAIN)
        p.box(-82, -40, 82, 40, GLASS)
    else:
        p.poly(MAIN, (-95, -10), (70, -55), (95, -30), (70, 45), (-50, 50))
        p.poly(GLASS, (-80, -6), (64, -44), (80, -26), (62, 36), (-46, 40))
    for k in range(b + 1):
        p.disc((0, -26, -44)[b] + 48 * k, 0, 24, METAL)
        p.disc((0, -26, -44)[b] + 48 * k, 0, 14, LIGHT)
    if c == 1:
        p.box(-60, 28, 60, 38, ACCENT)
    elif c == 2:
        p.rays(70, 98, 1, 5, ACCENT)


def jug(p: Canvas, a: int, b: int, c: int) -> None:
    w = (44, 58, 70)[a]
    p.poly(MAIN, (-w, -30), (-w + 24, -62), (w, -62), (w, 94), (-w, 94))
    p.box(w - 30, -50, w - 14, 10, NOTHING)  # the handle's hole
    p.box(-w + 26, -84, -w + 56, -60, SECOND)
    if c == 1:
        p.line(-w + 40, -84, -w - 10, -98, 12, SECOND)
    p.box(-w + 8, 14, w - 8, 80, LIGHT)
    for k in range(b):
        p.box(-w + 14, 22 + 44 * k, w - 14, 32 + 44 * k, ACCENT)
    if c == 2 or b == 0:  # a drop
        p.disc(0, 56, 16, ACCENT)
        p.poly(ACCENT, (-14, 48), (0, 20), (14, 48))


def wiper(p: Canvas, a: int, b: int, c: int) -> None:
    left, right = -96 + 16 * a, 96 - 16 * a
    p.line(left, -46, right, -46, 10, DARK)
    if b < 2:
        p.line(left + 16, -50, 0, -72, 8, METAL)
        p.line(0, -72, right - 16, -50, 8, METAL)
        for k in range(4 * b):
            p.box(left + 20 + 40 * k, -62, left + 27 + 40 * k, -46, METAL)
    else:
        p.poly(MAIN, (left, -50), (0, -66), (right, -50))
    p.line(0, -68, (40, 70, -20)[c], 76, 12, MAIN)
    p.disc((40, 70, -20)[c], 78, 18, MAIN)
    p.disc((40, 70, -20)[c], 78, 8, METAL)


def battery(p: Canvas, a: int, b: int, c: int) -> None:
    top = (-20, -40, -56)[a]
    p.box(-50, top - 22, -26, top, METAL)
    p.box(26, top - 22, 50, top, ACCENT)
    p.box(-88, top, 88, 76, MAIN)
    p.box(-92, top, 92, top + 20, SECOND)
    p.box(-60, 0, 60, 60, LIGHT)
    p.box(-46, 26, -18, 34, DARK)
    p.box(18, 26, 46, 34, ACCENT)
    p.box(28, 16, 36, 44, ACCENT)
    for k in range(b):
        p.box(-88, 62 - 80 * k // 2, 88, 70 - 80 * k // 2, SECOND)
    if c:
        p.line(-70, top, 0, top - 40, 8, DARK)
        p.line(70, top, 0, top - 40, 8, DARK)


def floormat(p: Canvas, a: int, b: int, c: int) -> None:
    if a == 2:
        p.poly(MAIN, (-60, -90), (60, -90), (84, 90), (-84, 90))
    else:
        p.poly(MAIN, (-70, -90), (40 + 30 * a, -90), (70, -50), (70, 90), (-70, 90))
    for k in range(6):
        if b != 1:
            p.box(-52, -70 + 26 * k, 52, -62 + 26 * k, SECOND)
        if b != 0:
            p.box(-52 + 20 * k, -70, -46 + 20 * k, 72, SECOND)
    if c == 1:
        p.box(-30, 20, 40, 74, DARK)
    elif c == 2:
        p.disc(0, 0, 26, LIGHT)


def doormirror(p: Canvas, a: int, b: int, c: int) -> None:
    p.poly(DARK, (20, 20), (60, 10), (96, 80), (60, 84))
    if a == 0:
        p.disc(-10, -12, 80, MAIN, 56)
        p.disc(-14, -10, 66, GLASS, 44)
    elif a == 1:
        p.box(-84, -64, 70, 44, MAIN)
        p.box(-74, -52, 58, 32, GLASS)
    else:
        p.poly(MAIN, (-92, -30), (-60, -72), (70, -60), (76, 40), (-80, 46))
        p.poly(GLASS, (-78, -24), (-52, -58), (56, -48), (60, 28), (-68, 34))
    if b:
        p.line(-60, -20 + 10 * b, 20, -44, 6 * b, LIGHT)
    if c:
        p.box(-70, (0, 30, -64)[c], 30, (0, 42, -54)[c], ACCENT)


def sparkplug(p: Canvas, a: int, b: int, c: int) -> None:
    p.box(-10, -96, 10, -70, METAL)
    p.box(-18, -76, 18, -6, LIGHT)
    for k in range(b + 1):
        p.box(-24, -62 + 18 * k, 24, -54 + 18 * k, MAIN)
    w = 34 + 6 * a
    p.poly(METAL, (-w, -6), (w, -6), (w - 6, 24), (-w + 6, 24))
    p.box(-22, 24, 22, 80, METAL)
    for k in range(4):
        p.box(-24, 30 + 13 * k, 24, 35 + 13 * k, DARK)
    p.box(-4, 80, 4, 90, ACCENT)
    if c:
        p.box(8, 80, 16, 98, DARK)
        p.box(-8 * (c - 1), 93, 16, 99, DARK)


def jack(p: Canvas, a: int, b: int, c: int) -> None:
    p.box(-60, 74, 60, 90, DARK)
    if c == 2:  # a trolley jack
        p.poly(MAIN, (-90, 40), (80, 30), (90, 74), (-90, 74))
        p.line(70, 40, 96, -90, 10, METAL)
        p.line(-60, 50, 20, -10 - 20 * a, 18, MAIN)
        p.box(0, -24 - 20 * a, 40, -10 - 20 * a, DARK)
        p.disc(-66, 78, 18, DARK)
        p.disc(66, 78, 18, DARK)
        return
    h = 24 + 16 * a
    for x0, y0 in ((-66, 0), (66, 0)):
        p.line(x0, y0, 0, 74, 14, MAIN)
        p.line(x0, y0, 0, -h - 20, 14, MAIN)
    p.box(-70, -5, 70 + 26 * c, 5, METAL)
    p.box(-26, -h - 34, 26, -h - 20, DARK)
    for k in range(b):
        p.disc(-66 + 132 * k, 0, 12, ACCENT)


def helmet(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, -6, 84, MAIN)
    p.box(-100, 44 + 10 * a, 100, 100, NOTHING)
    if c == 1:
        p.poly(MAIN, (-96, 10), (-20, 10), (-20, 78), (-80, 78))
    p.poly(GLASS if a < 2 else DARK, (-90, -26), (20, -30), (20, 22), (-84, 20))
    if b:
        p.line(-30, -76, 70, -30, 10, SECOND)
    if b == 2:
        p.line(-50, -66, 76, -6, 8, ACCENT)
    if c == 2:
        p.poly(SECOND, (-99, -52), (-10, -70), (-10, -44), (-99, -36))


def airfilter(p: Canvas, a: int, b: int, c: int) -> None:
    if a == 0:
        p.disc(0, 0, 90, MAIN)
        p.rays(40, 84, 1, 9, LIGHT)
        p.disc(0, 0, 42, MAIN)
        p.disc(0, 0, 32, NOTHING if c else METAL)
    elif a == 1:
        p.box(-90, -64, 90, 64, MAIN)
        for k in range(6 + 3 * b):
            p.box(-78 + 156 * k // (6 + 3 * b), -50, -66 + 156 * k // (6 + 3 * b), 50, LIGHT)
    else:
        p.poly(MAIN, (-36, -60), (36, -60), (76, 70), (-76, 70))
        for k in range(4 + b):
            x = -3 + 2 * k - b
            p.line(11 * x, -52, 22 * x, 60, 8, LIGHT)
        p.box(-44, -84, 44, -56, METAL)
    if c == 2:
        p.box(-90, 56, 90, 76, DARK)


def brakedisc(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, 0, 90, METAL)
    if b == 1:
        p.dots(70, 1, 6, DARK)
    elif b == 2:
        p.rays(50, 84, 2, 7, DARK)
    p.disc(0, 0, 44 - 6 * a, DARK)
    p.disc(0, 0, 38 - 6 * a, LIGHT)
    p.dots(24, 2 if a else 3, 5, DARK)
    p.disc(0, 0, 10, NOTHING)
    if c:
        p.poly(MAIN, (30, -96), (98, -70), (98, 10 * c), (60, 10 * c), (40, -40))


def shock(p: Canvas, a: int, b: int, c: int) -> None:
    p.box(-7, -92, 7, 92, METAL)
    p.box(-18, 10, 18, 84, DARK)
    n = 4 + 2 * b
    w = (34, 44, 54)[a]
    for k in range(n):
        y = -66 + 110 * k // n
        p.line(-w, y, w, y + 14, 10, MAIN)
    p.box(-w - 6, -78, w + 6, -66, SECOND)
    p.box(-w - 6, 44, w + 6, 58, SECOND)
    p.disc(0, 88, 13, METAL)
    if c:
        p.disc(0, -90, 13, METAL)
    if c == 2:
        p.box(w, -20, w + 34, 60, ACCENT)


def seat(p: Canvas, a: int, b: int, c: int) -> None:
    if c != 2:
        p.box(-64 + 8 * a, -98, -14 + 8 * a, -70, SECOND)
    p.poly(MAIN, (-74, -66), (4 + 8 * a, -66), (24 + 8 * a, 40), (-50, 50))
    p.poly(MAIN, (-54, 30), (84, 26), (90, 66), (-48, 70))
    p.poly(SECOND, (-52, -50), (-16, -50), (2, 36), (-34, 40))
    for k in range(b):
        p.line(-58 + 8 * k, -30 + 34 * k, 6 + 8 * k, -30 + 34 * k, 6, LIGHT)
    p.box(-44, 70, 80, 84, DARK)
    if c == 1:
        p.line(-60, -60, 40, 40, 9, DARK)


def steering(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, 0, 92, MAIN)
    p.disc(0, 0, 72 - 4 * a, NOTHING)
    if b == 0:
        p.box(-80, -10, 80, 14, DARK)
        p.box(-10, 0, 10, 80, DARK)
    elif b == 1:
        p.rays(0, 76, 4, 18, METAL, 0, 0)
    else:
        p.rays(0, 76, 3, 14, METAL)
    p.disc(0, 2, 26 + 5 * a, DARK)
    p.disc(0, 2, 10, ACCENT if c else LIGHT)
    if c == 2:
        p.box(-80, 62, 80, 100, NOTHING)
        p.box(-58, 52, 58, 66, MAIN)


def exhaust(p: Canvas, a: int, b: int, c: int) -> None:
    p.line(-98, -30 + 20 * a, -40, 0, 16, METAL)
    p.disc(-44, 0, 20, MAIN, 40)
    p.box(-44, -40, 40, 40, MAIN)
    p.disc(40, 0, 20, SECOND, 40)
    for k in range(b + 1):
        y = (0, -18, -26)[b] + (0, 36, 26)[b] * k
        p.box(40, y - 9, 94, y + 9, METAL)
        p.disc(92, y, 6, DARK, 9)
    for k in range(c):
        p.box(-30 + 40 * k, -40, -20 + 40 * k, 40, DARK)


def wrench(p: Canvas, a: int, b: int, c: int) -> None:
    p.line(-60, 60, 60, -60, 16 + 6 * a, MAIN if b == 2 else METAL)
    p.disc(64, -64, 32, METAL)
    p.poly(NOTHING, (56, -76), (92, -104), (106, -90), (76, -56))
    p.disc(-62, 62, 28, METAL)
    p.disc(-62, 62, 14, NOTHING)
    if b:
        p.line(-30, 30, 20, -20, 9, ACCENT)
    if c == 1:
        p.line(-90, -30, 10, 80, 12, DARK)
    elif c == 2:
        p.box(-90, -80, -40, -60, METAL)
        p.box(-74, -80, -56, 10, MAIN)


# --- beauty -----------------------------------------------------------------------------------------------


def lipstick(p: Canvas, a: int, b: int, c: int) -> None:
    x = -30 if c else 0
    p.box(x - 28, 16, x + 28, 94, DARK if b == 0 else SECOND)
    p.box(x - 22, -16, x + 22, 20, METAL)
    top = -60 - 12 * a
    p.poly(MAIN, (x - 17, -16), (x + 17, -16), (x + 17, top), (x - 17, top + 26))
    if b == 2:
        p.box(x - 28, 50, x + 28, 60, METAL)
    if c:
        p.box(22, -10, 74, 94, DARK if b == 0 else SECOND)
        p.box(22, 70 - 60 * (c - 1), 74, 80 - 60 * (c - 1), METAL)


def dropper(p: Canvas, a: int, b: int, c: int) -> None:
    w = (34, 44, 54)[a]
    p.box(-w, -10, w, 94, GLASS if b == 0 else MAIN)
    p.poly(GLASS if b == 0 else MAIN, (-w, -9), (w, -9), (16, -34), (-16, -34))
    if b == 0:
        p.box(-w + 6, 30, w - 6, 88, MAIN)
    p.box(-20, -54, 20, -32, METAL if c else DARK)
    p.disc(0, -72, 15, SECOND, 26)
    p.box(-w + 6, 10 + 10 * c, w - 6, 60, LIGHT)
    if b == 2:
        p.box(-w + 14, 24 + 8 * c, w - 14, 32 + 8 * c, DARK)


def pump(p: Canvas, a: int, b: int, c: int) -> None:
    w = (36, 48, 58)[a]
    p.box(-w, -30, w, 94, MAIN)
    if b != 1:
        p.disc(0, -30, w, MAIN, 22)
    p.box(-16, -62, 16, -44, SECOND)
    p.box(-6, -84, 6, -60, SECOND)
    p.box(-54 - 14 * (c == 1), -94, 20, -80, SECOND)
    if c == 2:
        p.box(-54, -94, -42, -66, SECOND)
    p.box(-w + 10, 0, w - 10, 70, LIGHT)
    for k in range(b + 1):
        p.box(-w + 18, 12 + 18 * k, w - 18, 20 + 18 * k, ACCENT)


def jar(p: Canvas, a: int, b: int, c: int) -> None:
    h = (30, 46, 62)[a]
    p.box(-70, 74 - 2 * h, 70, 80, MAIN)
    p.disc(0, 78, 70, MAIN, 16)
    lid = 74 - 2 * h
    if c == 2:  # open: the cream, and the lid beside
        p.disc(0, lid, 70, SECOND, 22)
        p.disc(0, lid, 60, LIGHT, 16)
        p.disc(14, lid - 6, 22, LIGHT, 14)
    else:
        p.box(-76, lid - 26, 76, lid + 8, SECOND)
        p.disc(0, lid - 26, 76, SECOND, 14)
        for k in range(7 * (b == 1)):
            p.box(-68 + 20 * k, lid - 20, -62 + 20 * k, lid + 8, DARK)
    if b == 2:
        p.disc(0, 40, 28, LIGHT)
    else:
        p.box(-50, 24, 50, 62, LIGHT)
    if c == 1:
        p.box(-40, 36, 40, 44, ACCENT)


def tube(p: Canvas, a: int, b: int, c: int) -> None:
    w = (30, 40, 50)[a]
    p.box(-w - 8, -94, w + 8, -82, SECOND)
    p.poly(MAIN, (-w - 8, -84), (w + 8, -84), (w - 6, 56), (-w + 6, 56))
    p.box(-w + 10, 56, w - 10, 94, SECOND if c != 1 else METAL)
    for k in range(b + 1):
        p.box(-w + 8, -50 + 34 * k, w - 8, -34 + 34 * k, LIGHT if k % 2 == 0 else ACCENT)
    if c == 2:
        p.disc(0, 16, 20, LIGHT)
        p.disc(0, 16, 12, ACCENT)


def brush(p: Canvas, a: int, b: int, c: int) -> None:
    n = 1 + (c == 2)
    for k in range(n):
        x = (-34 + 68 * k) if n == 2 else 0
        p.poly(MAIN, (x - 6, 96), (x + 6, 96), (x + 12, 4), (x - 12, 4))
        p.box(x - 15, -18, x + 15, 8, METAL)
        w = (14, 26, 32)[a]
        if b == 0:
            p.poly(SECOND, (x - 14, -18), (x + 14, -18), (x + w, -70), (x - w, -70))
            p.disc(x, -68, w, SECOND, 18)
        elif b == 1:
            p.poly(SECOND, (x - 14, -18), (x + 14, -18), (x + 18, -88), (x - 18, -60))
        else:
            p.disc(x, -54, 14 + w // 3, SECOND, 40)
        if c == 1:
            p.disc(x, -80, w // 2 + 6, ACCENT, 12)


def comb(p: Canvas, a: int, b: int, c: int) -> None:
    end = (92, 30, 92)[c]
    n = (8, 12, 18)[b]
    p.box(-92, -40, end, -40 + 18 + 6 * a, MAIN)
    for k in range(n):
        x = -90 + (end + 86) * k // n
        p.box(x, -24, x + max(3, 70 // n), 20 + 14 * a, MAIN)
    if c == 1:  # a tail
        p.line(20, -30, 98, -34, 14, MAIN)
    if c == 2:
        p.box(-92, -40, -74, 30 + 14 * a, MAIN)
        p.box(76, -40, 92, 30 + 14 * a, MAIN)


def handmirror(p: Canvas, a: int, b: int, c: int) -> None:
    p.box(-10 - 3 * a, 20, 10 + 3 * a, 96, MAIN)
    if b == 0:
        p.disc(0, -34, 60, MAIN)
        p.disc(0, -34, 48, GLASS)
    elif b == 1:
        p.disc(0, -34, 48, MAIN, 62)
        p.disc(0, -34, 38, GLASS, 50)
    else:
        p.box(-56, -94, 56, 22, MAIN)
        p.box(-44, -82, 44, 10, GLASS)
    p.line(-24, -24, 14, -62, 8, LIGHT)
    if c == 1:
        p.disc(0, 92, 34, MAIN, 8)
    elif c == 2:
        p.dots(54, 2, 6, ACCENT, 0, -34)


def polish(p: Canvas, a: int, b: int, c: int) -> None:
    w = (34, 44, 54)[a]
    p.poly(SECOND if c == 1 else DARK, (-13, -92), (13, -92), (20, 4), (-20, 4))
    if b == 0:
        p.disc(0, 46, w, MAIN, 46)
    elif b == 1:
        p.box(-w, 6, w, 92, MAIN)
    else:
        p.poly(MAIN, (-20, 4), (20, 4), (w + 8, 92), (-w - 8, 92))
    p.box(-w + 12, 30, -w + 20, 76, LIGHT)
    if c == 2:
        p.box(-20, -4, 20, 10, METAL)


def soap(p: Canvas, a: int, b: int, c: int) -> None:
    if a == 0:
        p.disc(0, 10, 84, MAIN, 54)
    else:
        p.box(-66, -36, 66, 56, MAIN)
        p.disc(-62, 10, 20 if a == 1 else 30, MAIN, 46)
        p.disc(62, 10, 20 if a == 1 else 30, MAIN, 46)
    if b == 0:
        p.disc(0, 10, 44, SECOND, 24)
    elif b == 1:
        p.box(-40, 0, 40, 20, SECOND)
    else:
        for k in range(3):
            p.line(-50 + 34 * k, 46, -20 + 34 * k, -30, 8, SECOND)
    if c:
        for x, y, r in ((-60, -62, 16), (-26, -78, 11), (50, -64, 20), (76, -40, 10))[: 2 * c]:
            p.disc(x, y, r, GLASS)
            p.disc(x - 3, y - 3, r // 2, LIGHT)


def dryer(p: Canvas, a: int, b: int, c: int) -> None:
    p.poly(MAIN if c != 1 else DARK, (-4, 10), (34, 10), (44, 96), (10, 96))
    p.disc(14, -24, 52, MAIN)
    p.poly(MAIN, (14, -72), (-60, -52 - 6 * a), (-60, 10 + 6 * a), (14, 26))
    if b:
        p.poly(DARK, (-58, -44), (-94, -36 - 20 * (b - 1)), (-94, -6 + 20 * (b - 1)), (-58, 2))
    p.disc(28, -24, 22 + 4 * a, SECOND)
    p.disc(28, -24, 12, DARK)
    p.box(14, 36, 26, 56, ACCENT if c else LIGHT)
    if c == 2:
        p.line(40, 92, 96, 84, 8, DARK)


def perfume(p: Canvas, a: int, b: int, c: int) -> None:
    if b == 0:
        p.box(-58, -20, 58, 92, GLASS)
        p.box(-46, 10 + 10 * a, 46, 82, MAIN)
    elif b == 1:
        p.disc(0, 36, 62, GLASS)
        p.disc(0, 40, 48, MAIN)
    else:
        p.poly(GLASS, (-40, -20), (40, -20), (72, 92), (-72, 92))
        p.poly(MAIN, (-38, 20), (38, 20), (58, 82), (-58, 82))
    p.box(-14, -42, 14, -20, METAL)
    w = (20, 28, 36)[a]
    p.box(-w, -88, w, -40, SECOND)
    if c == 1:  # an atomiser's bulb
        p.line(14, -32, 66, -40, 7, METAL)
        p.disc(78, -42, 20, ACCENT)
    elif c == 2:
        p.disc(0, 46, 20, LIGHT)


def palette(p: Canvas, a: int, b: int, c: int) -> None:
    inks = (MAIN, SECOND, ACCENT, LIGHT, METAL, MAIN, ACCENT, SECOND)
    if c == 2:  # a round compact, its lid open
        p.disc(0, -44, 58, DARK, 50)
        p.disc(0, -44, 48, GLASS, 40)
        p.disc(0, 40, 70, DARK, 52)
        p.disc(0, 40, 54, MAIN, 38)
        if b:
            p.disc(0, 40, 26 * b, SECOND, 18)
        return
    if c == 1:
        p.box(-92, -96, 92, -6, DARK)
        p.box(-80, -86, 80, -16, GLASS)
    top, rows, columns = (0 if c else -56), (1 if c else 2), 3 + a
    p.box(-92, top - 6, 92, 92 if c else 66, DARK)
    for k in range(rows * columns):
        x, y = -84 + 170 * (k % columns) // columns, top + 6 + 56 * (k // columns)
        side, ink = 144 // columns, inks[(k * (b + 1)) % 8]
        if b == 1:
            p.disc(x + side // 2 + 4, y + 26, side // 2, ink, 24)
        else:
            p.box(x + 4, y, x + side, y + 48, ink)


def razor(p: Canvas, a: int, b: int, c: int) -> None:
    w = (60, 46, 70)[a]
    p.line(0, -50, (0, 20, 0)[c], 96, 20 - 4 * (c == 2), MAIN)
    p.box(-w, -92, w, -48, SECOND)
    for k in range(b + 2):
        p.box(-w + 8, -86 + 34 * k // (b + 2), w - 8, -82 + 34 * k // (b + 2), LIGHT)
    p.box(-w + 4, -54, w - 4, -48, ACCENT)
    for k in range(3 * (c == 2)):
        p.box(-14, 10 + 22 * k, 14, 20 + 22 * k, DARK)


def spraycan(p: Canvas, a: int, b: int, c: int) -> None:
    w = (26, 34, 42)[a]
    p.box(-w, -44, w, 94, MAIN)
    p.disc(0, -44, w, METAL, 18)
    if c == 1:
        p.box(-w + 4, -88, w - 4, -46, SECOND)
    else:
        p.box(-10, -82, 10, -56, SECOND)
        p.disc(-16, -74, 5, DARK)
    if c == 2:
        for x, y in ((-44, -80), (-60, -70), (-62, -92), (-80, -82), (-84, -64)):
            p.disc(x, y, 6, GLASS)
    if b == 0:
        p.box(-w, -10, w, 50, LIGHT)
    elif b == 1:
        p.poly(ACCENT, (-w, 60), (w, -20), (w, 10), (-w, 90))
    else:
        p.disc(0, 24, w - 6, LIGHT)
        p.disc(0, 24, w - 16, ACCENT)


def scissors(p: Canvas, a: int, b: int, c: int) -> None:
    for s in (-1, 1):
        p.poly(METAL, (s * 6, 10), (-s * 8, 4), (-s * (14 + 6 * a), -94), (-s * 6, -80))
        p.line(0, 4, s * 36, 50, 14, METAL)
        p.disc(s * 42, 66, 30, MAIN)
        p.disc(s * 42, 66, 17, NOTHING)
    for k in range(b * 5):
        p.box(8, -76 + 8 * k, 16, -72 + 8 * k, METAL)
    p.disc(0, 6, 7, DARK)
    if c == 1:
        p.line(64, 84, 92, 92, 9, MAIN)
    elif c == 2:
        p.box(-96, -90, -70, 90, SECOND)


def straightener(p: Canvas, a: int, b: int, c: int) -> None:
    if c == 2:  # a curling wand
        p.poly(METAL, (-12, -94), (12, -94), (22 + 4 * a, 16), (-22 - 4 * a, 16))
        p.box(-18, 16, 18, 86, MAIN)
        p.disc(0, 16, 30, DARK, 10)
        p.box(-10, 40, 10, 50, ACCENT)
        return
    gap = 12 + 12 * a
    for s in (-1, 1):
        p.poly(MAIN, (s * 2, 92), (s * 22, 92), (s * (gap + 26), -94), (s * gap, -94))
        p.poly(ACCENT if b == 1 else METAL, (s * (gap - 4), -88), (s * (gap + 4), -88), (s * 14, -10), (s * 8, -10))
    p.disc(0, 88, 20, DARK)
    if b == 2:
        p.box(8, 20, 24, 60, LIGHT)
    if c == 1:
        p.line(0, 90, 70, 97, 8, DARK)


# --- electronics ------------------------------------------------------------------------------------------


def phone(p: Canvas, a: int, b: int, c: int) -> None:
    w = (40, 48, 56)[a]
    p.box(-w, -94, w, 94, MAIN)
    if c == 2:  # seen from behind
        p.box(-w + 8, -86, -w + 44, -40, DARK)
        for k in range(b + 1):
            p.disc(-w + 18 + 16 * (k % 2), -74 + 18 * (k // 2), 7, GLASS)
        p.disc(0, 30, 12, LIGHT)
        return
    p.box(-w + 6, -78 + 6 * b, w - 6, 74, GLASS)
    if b == 0:
        p.disc(0, 84, 8, METAL)
    for k in range(8 * (c == 1)):
        x, y = -w + 16 + (2 * w - 24) * (k % 3) // 3, -50 + 36 * (k // 3)
        p.box(x, y, x + 16, y + 18, (ACCENT, LIGHT, SECOND)[k % 3])
    p.box(-14, -88, 14, -84, DARK)


def laptop(p: Canvas, a: int, b: int, c: int) -> None:
    w = (66, 74, 82)[a]
    p.box(-w, -76, w, 26, MAIN)
    p.box(-w + 8, -68, w - 8, 18, GLASS)
    if b == 1:
        p.box(-w + 18, -56, -10, -8, ACCENT)
    elif b == 2:
        p.poly(ACCENT, (-w + 10, 16), (w - 10, 16), (30, -40))
    p.poly(SECOND, (-w, 28), (w, 28), (w + 16, 72), (-w - 16, 72))
    for k in range(3):
        p.box(-w + 4 - 4 * k, 33 + 9 * k, w - 4 + 4 * k, 38 + 9 * k, DARK)
    p.box(-20, 62, 20, 70, LIGHT if c else DARK)
    if c == 2:
        p.box(-w - 16, 72, w + 16, 80, DARK)


def headphones(p: Canvas, a: int, b: int, c: int) -> None:
    if c == 2:  # earbuds on a wire
        for s in (-1, 1):
            p.line(s * 44, -50, s * 8, 60, 6, DARK)
            p.disc(s * 50, -60, 24 + 3 * a, MAIN)
            p.disc(s * 62, -64, 12, SECOND)
        p.line(0, 56, 0, 98, 7, DARK)
        p.box(-8, 54, 8, 70, METAL)
        return
    p.disc(0, 4, 82, MAIN, 90)
    p.disc(0, 4, 82 - 8 - 5 * b, NOTHING, 78 - 4 * b)
    p.box(-100, 24, 100, 100, NOTHING)
    for s in (-1, 1):
        p.disc(s * 72, 42, 22, MAIN, 40 + 6 * a)
        p.disc(s * 58, 42, 14, DARK if b != 1 else ACCENT, 34 + 6 * a)
    if c == 1:
        p.line(-66, 70, -10, 90, 7, DARK)
        p.disc(-8, 90, 9, METAL)


def camera(p: Canvas, a: int, b: int, c: int) -> None:
    p.box(-90, -44, 90, 66, MAIN)
    if c != 1:
        p.poly(MAIN, (-30, -42), (-20, -70), (26, -70), (36, -42))
    if c == 2:
        p.box(-18, -84, 24, -70, LIGHT)
    p.box(-90, -44, -56, 66, DARK)
    p.box(56, -56, 80, -44, METAL)
    r = (36, 44, 52)[a]
    p.disc(12, 12, r, METAL)
    p.disc(12, 12, r - 8, DARK)
    p.disc(12, 12, r - 20, GLASS)
    p.disc(6, 6, 6, LIGHT)
    if b:
        p.disc(74, -28, 8, ACCENT)
    if b == 2:
        p.box(-90, -30, 90, -22, SECOND)


def cable(p: Canvas, a: int, b: int, c: int) -> None:
    r = (46, 56, 66)[a]
    for k in range(b + 1):
        p.disc(0, -14, r - 16 * k, MAIN)
        p.disc(0, -14, r - 16 * k - 8, NOTHING)
    p.line(-r + 4, -10, -60, 70, 9, MAIN)
    p.line(r - 4, -10, 60, 70, 9, MAIN)
    for s in (-1, 1):
        w = 11 if c == 0 else 15
        p.box(s * 60 - w, 56, s * 60 + w, 82, DARK)
        if c < 2 or s < 0:
            p.box(s * 60 - w + 5, 82, s * 60 + w - 5, 98, METAL)
        else:
            p.disc(s * 60, 86, 20, SECOND)
    if c == 1:
        p.box(-10, -14 - r - 6, 10, -14 - r + 18, ACCENT)


def speaker(p: Canvas, a: int, b: int, c: int) -> None:
    if c == 2:  # a cylinder
        p.box(-46, -70, 46, 76, MAIN)
        p.disc(0, 76, 46, MAIN, 16)
        p.disc(0, -70, 46, SECOND, 18)
        for k in range(4 + b):
            p.box(-46, -44 + 24 * k - 4 * b * k // 2, 46, -38 + 24 * k - 4 * b * k // 2, DARK)
        p.disc(0, -70, 14, ACCENT, 6)
        return
    w = (46, 56, 70)[a]
    p.box(-w, -94, w, 94, MAIN)
    for k in range(b + 1):
        y, r = ((36,), (-50, 36), (-66, -14, 48))[b][k], (min(w - 8, 46), 38, 30)[b] - (8 if k == 0 and b else 0)
        p.disc(0, y, r, METAL)
        p.disc(0, y, r - 6, DARK)
        p.disc(0, y, r // 3, SECOND)
    if c == 1:
        p.box(-w, 82, w, 94, ACCENT)


def monitor(p: Canvas, a: int, b: int, c: int) -> None:
    w = (72, 84, 96)[a]
    p.box(-w, -74, w, 40, MAIN)
    p.box(-w + 7, -67, w - 7, 30, GLASS)
    if b == 1:
        p.box(-w + 20, -54, 0, 10, LIGHT)
    elif b == 2:
        p.poly(SECOND, (-w + 8, 29), (-20, -30), (30, 29))
        p.disc(40, -40, 14, ACCENT)
    if c == 2:
        p.line(-50, 40, -66, 82, 10, DARK)
        p.line(50, 40, 66, 82, 10, DARK)
    else:
        p.box(-10, 40, 10, 76, DARK)
        p.disc(0, 80, 50 - 14 * c, DARK, 12)


def keyboard(p: Canvas, a: int, b: int, c: int) -> None:
    w = (96, 84, 72)[a]
    p.box(-w, -38, w, 46 - 4 * a, MAIN)
    n = (12, 10, 9)[a]
    for k in range(n * 3):
        x, y = -w + 8 + (2 * w - 12) * (k % n) // n, -30 + 18 * (k // n)
        p.box(x, y, x + 9, y + 12, ACCENT if b == 1 and k % 7 == 0 else (LIGHT, LIGHT, SECOND)[b])
    p.box(-w // 2, 24, w // 2, 34, LIGHT if b < 2 else SECOND)
    if c == 1:
        p.line(0, -38, 20, -90, 7, DARK)
    elif c == 2:
        p.box(-w, 42 - 4 * a, w, 60, DARK)


def mouse(p: Canvas, a: int, b: int, c: int) -> None:
    w = (42, 50, 58)[a]
    p.disc(0, 14, w, MAIN, 76)
    p.box(-3, -62, 3, -4, DARK)
    p.box(-w, -8, w, -3, DARK)
    p.box(-8, -46, 8, -16, ACCENT if b else METAL)
    if b == 2:
        p.disc(-w + 6, 26, 9, ACCENT, 22)
    if c == 1:
        p.line(0, -60, 26, -98, 7, DARK)
    elif c == 2:
        p.disc(0, 48, 16, LIGHT)


def remote(p: Canvas, a: int, b: int, c: int) -> None:
    w = (24, 32, 40)[a]
    p.box(-w, -94, w, 94, MAIN)
    p.disc(-w // 2, -80, 7, ACCENT)
    if c == 1:
        p.disc(0, -36, w - 6, METAL)
        p.disc(0, -36, w // 2 - 3, DARK)
    elif c == 2:
        p.box(-w + 6, -66, w - 6, -20, GLASS)
    n = 2 + (b == 2)
    for k in range(n * 4):
        x = -w + 8 + (2 * w - 12) * (k % n) // n
        y = 2 + 22 * (k // n)
        if b == 1:
            p.disc(x + 8, y + 6, 7, LIGHT)
        else:
            p.box(x, y, x + 12 - 2 * (b == 2), y + 12, LIGHT)


def usbdrive(p: Canvas, a: int, b: int, c: int) -> None:
    w = (24, 32, 40)[a]
    p.box(-w + 8, -92, w - 8, -44, METAL)
    p.box(-w + 13, -82, -w + 19, -68, DARK)
    p.box(w - 19, -82, w - 13, -68, DARK)
    p.box(-w, -46, w, 74, MAIN)
    p.disc(0, 74, w, MAIN, 18)
    if b == 1:
        p.box(-w + 8, -24, w - 8, 30, LIGHT)
    elif b == 2:
        p.box(-w, -10, w, 10, SECOND)
        p.box(-w, 24, w, 34, SECOND)
    p.disc(0, 70, 9, NOTHING)
    if c == 1:  # a swivel clip
        p.poly(METAL, (w - 6, 60), (w + 50, 0), (w + 62, 12), (w + 4, 76))
    elif c == 2:
        p.disc(0, 40, 6, ACCENT)


def router(p: Canvas, a: int, b: int, c: int) -> None:
    for k in range(b + 2):
        x = -74 + 148 * k // (b + 1)
        p.line(x, 30, x + (x // 6 if c != 1 else 0), -86, 10, DARK)
    if c == 2:
        p.poly(MAIN, (-70, 12), (70, 12), (94, 66), (-94, 66))
    else:
        p.box(-92, 14, 92, 56 + 10 * a, MAIN)
    for k in range(3 + a):
        p.disc(-56 + 28 * k, 40, 6, ACCENT)
    p.box(-80, 56 + 10 * a, -60, 70 + 8 * a, DARK)
    p.box(60, 56 + 10 * a, 80, 70 + 8 * a, DARK)


def watch(p: Canvas, a: int, b: int, c: int) -> None:
    w = (18, 26, 34)[a]
    p.box(-w, -98, w, 98, SECOND)
    for k in range(4):
        p.box(-4, 62 + 10 * k, 4, 66 + 10 * k, DARK)
    if b == 1:
        p.box(-46, -50, 46, 50, MAIN)
        p.box(-37, -41, 37, 41, GLASS)
    else:
        p.disc(0, 0, 54, MAIN)
        p.disc(0, 0, 44, LIGHT if b == 0 else GLASS)
    if c == 1:
        p.box(-26, 10, -12, 30, ACCENT)
        p.box(-7, -10, 7, 30, ACCENT)
        p.box(12, -24, 26, 30, ACCENT)
    else:
        p.line(0, 0, 0, -32, 7, DARK)
        p.line(0, 0, 24, 12, 7, DARK)
    p.box(46, -8, 64, 8, METAL if c != 2 else ACCENT)


def gamepad(p: Canvas, a: int, b: int, c: int) -> None:
    for s in (-1, 1):
        p.poly(MAIN, (s * 50, -30), (s * 88, 0), (s * 98, 60 + 8 * a), (s * 70, 70 + 8 * a), (s * 30, 20))
    p.disc(-52, -10, 42, MAIN)
    p.disc(52, -10, 42, MAIN)
    p.box(-52, -52, 52, 30, MAIN)
    p.box(-68, -16, -36, -6, DARK)
    p.box(-57, -27, -47, 5, DARK)
    for x, y in ((52, -28), (52, 8), (34, -10), (70, -10)):
        p.disc(x, y, 8, ACCENT if c != 1 else LIGHT)
    if b:
        p.disc(-24, 20, 15, SECOND)
        p.disc(24, 20, 15, SECOND)
    if b == 2:
        p.box(-24, -46, 24, -14, GLASS)
    if c == 2:
        p.line(0, -50, 10, -98, 7, DARK)


def printer(p: Canvas, a: int, b: int, c: int) -> None:
    p.poly(LIGHT, (-46, -92), (46, -92), (52, -20), (-52, -20))
    p.box(-86, -34, 86, 50 + 6 * a, MAIN)
    p.box(-86, -34, 86, -18, SECOND)
    p.box(-60, 20, 60, 34, DARK)
    p.poly(LIGHT, (-52, 34), (52, 34), (64, 86), (-64, 86))
    for k in range(3):
        p.box(-36, 46 + 12 * k, 36, 50 + 12 * k, METAL if b != 1 else ACCENT)
    if c:
        p.box(30, -12, 76, 10, GLASS if c == 2 else DARK)
    p.disc(-70, 0, 6 + b, ACCENT)


def microphone(p: Canvas, a: int, b: int, c: int) -> None:
    if c == 2:  # on a desk stand
        p.disc(0, 88, 50, DARK, 10)
        p.box(-5, 10, 5, 86, METAL)
        p.box(-30 - 2 * a, -50, 30 + 2 * a, 20, MAIN)
    else:
        p.poly(MAIN, (-24, -20), (24, -20), (13, 96), (-13, 96))
        p.box(-7, 10, 7, 26, ACCENT if b else LIGHT)
    p.disc(0, -54, 36 + 2 * a, METAL)
    for k in range(3):
        p.box(-34, -72 + 16 * k, 34, -68 + 16 * k, DARK)
        if b == 2:
            p.box(-20 + 18 * k, -86, -16 + 18 * k, -24, DARK)
    p.box(-30, -26, 30, -16, DARK if c != 1 else ACCENT)


def adapter(p: Canvas, a: int, b: int, c: int) -> None:
    w = (42, 54, 66)[a]
    p.box(-24, -94, -12, -50, METAL)
    p.box(12, -94, 24, -50, METAL)
    if b == 1:
        p.disc(0, 0, w, MAIN, 56)
    else:
        p.box(-w, -52, w, 50, MAIN)
    for k in range(b + 1):
        x = (0, -18, -28)[b] + (0, 36, 28)[b] * k
        p.box(x - 10, 10, x + 10, 24, DARK)
    p.box(-w + 10, -36, w - 10, -16, LIGHT)
    if c:
        p.line(0, 50, -30 * c, 98, 9, DARK)
    if c == 2:
        p.disc(w - 14, -2, 6, ACCENT)


# --- everyday: of no genre, in the worlds above 0 ----------------------------------------------------------


def cup(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(62, 0, 34, MAIN, 40)
    p.disc(62, 0, 20, NOTHING, 26)
    p.poly(MAIN, (-66, -60), (66, -60), (50 - 8 * a, 76), (-50 + 8 * a, 76))
    p.disc(0, -60, 66, SECOND, 16)
    for k in range(b):
        p.box(-50, -20 + 40 * k, 50, -8 + 40 * k, ACCENT)
    if c:
        p.disc(0, 84, 80, LIGHT, 10)


def chair(p: Canvas, a: int, b: int, c: int) -> None:
    p.box(-60, -94, -44, 94, MAIN)
    p.box(44, 10, 60, 94, MAIN)
    p.box(-60, 0, 64, 22, MAIN)
    for k in range(b + 1):
        p.box(-44, -88 + 28 * k, 50 - 10 * a, -72 + 28 * k, SECOND)
    if c:
        p.box(-50, -12, 60, 4, ACCENT)


def ball(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, 0, 86, MAIN)
    p.disc(0, 0, 30 + 20 * a, SECOND, 86)
    p.disc(0, 0, 22 + 18 * a, MAIN, 86)
    p.box(-80, -6 - 4 * b, 80, 6 + 4 * b, LIGHT if c else SECOND)


def book(p: Canvas, a: int, b: int, c: int) -> None:
    p.box(-60, -90, 60 + 8 * a, 90, MAIN)
    p.box(60 + 8 * a, -84, 70 + 8 * a, 86, LIGHT)
    p.box(-60, -90, -46, 90, DARK)
    p.box(-30, -60, 46, -20, LIGHT)
    for k in range(b + 1):
        p.box(-24, -52 + 12 * k, 40, -46 + 12 * k, DARK)
    if c:
        p.disc(8, 34, 26, SECOND)


def lamp(p: Canvas, a: int, b: int, c: int) -> None:
    p.poly(MAIN, (-26 - 6 * a, -92), (26 + 6 * a, -92), (70, -10), (-70, -10))
    p.box(-7, -10, 7, 80, METAL)
    p.disc(0, 84, 46, SECOND, 12)
    if b:
        p.disc(0, 34, 14 * b, SECOND)
    if c:
        p.line(30, -10, 30, 30, 4, DARK)


def bag(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, -30, 46, DARK, 60)
    p.disc(0, -30, 36, NOTHING, 48)
    p.poly(MAIN, (-70 + 8 * a, -30), (70 - 8 * a, -30), (88, 88), (-88, 88))
    p.box(-74, 0 + 10 * b, 74, 12 + 10 * b, SECOND)
    if c:
        p.disc(0, 44, 18, METAL)


def shirt(p: Canvas, a: int, b: int, c: int) -> None:
    for s in (-1, 1):
        p.poly(SECOND if c else MAIN, (s * 40, -80), (s * 98, -30 + 20 * a), (s * 76, 0 + 20 * a), (s * 40, -30))
    p.box(-52, -80, 52, 88, MAIN)
    p.disc(0, -82, 24, NOTHING, 18)
    for k in range(2 * b):
        p.box(-52, -30 + 30 * k, 52, -18 + 30 * k, LIGHT)


def clock(p: Canvas, a: int, b: int, c: int) -> None:
    p.disc(0, 0, 88, MAIN)
    p.disc(0, 0, 74 - 4 * a, LIGHT)
    p.rays(54, 66, 1 + b, 6, DARK)
    p.line(0, 0, 0, -50, 8, DARK)
    p.line(0, 0, 34, 20, 9, ACCENT if c else DARK)


Drawer = Callable[[Canvas, int, int, int], None]
DRAWERS: dict[str, list[Drawer]] = {
    "automotive": [
        tyre,
        jug,
        headlamp,
        wiper,
        battery,
        floormat,
        doormirror,
        sparkplug,
        jack,
        helmet,
        rim,
        airfilter,
        brakedisc,
        shock,
        seat,
        steering,
        exhaust,
        wrench,
    ],
    "beauty": [
        lipstick,
        pump,
        jar,
        brush,
        handmirror,
        polish,
        tube,
        dryer,
        perfume,
        comb,
        soap,
        palette,
        dropper,
        razor,
        spraycan,
        scissors,
        straightener,
    ],
    "electronics": [
        phone,
        laptop,
        headphones,
        camera,
        cable,
        speaker,
        monitor,
        keyboard,
        mouse,
        remote,
        usbdrive,
        router,
        watch,
        gamepad,
        printer,
        microphone,
        adapter,
    ],
    "everyday": [cup, chair, ball, book, lamp, bag, shirt, clock],
}


@dataclass(frozen=True)
class Shape:
    """A drawer as one world has it."""

    drawer: Drawer
    # What its arguments a, b and c are for the variants 0, 1 and 2.
    arguments: tuple[tuple[int, ...], ...] = ((0, 1, 2),) * 3
    proportions: tuple[int, int, int, int] = (100, 100, 100, 100)  # left, right, upper, lower half, per cent

    def draw(self, u: np.ndarray, v: np.ndarray, variant: Sequence[int]) -> np.ndarray:
        """Inks of a variant at raster points (u, v)."""
        left, right, upper, lower = self.proportions
        canvas = Canvas(_stretched(u, left, right), _stretched(v, upper, lower))
        self.drawer(canvas, *(values[k] for values, k in zip(self.arguments, variant, strict=True)))
        return canvas.inks


def _stretched(line: np.ndarray, low: int, high: int) -> np.ndarray:
    """Coordinates in which what is drawn is ``low`` per cent as long below 0, and ``high`` above."""
    return line if low == high == 100 else np.where(line < 0, line * 100 // low, line * 100 // high)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Raster points of a picture, two by two a pixel: x (1, 2 size) and y (2 size, 1), in 1/8 design units."""
    n = 2 * size
    line = (2 * np.arange(n) + 1 - n) * (100 * _UNIT) // n
    return line[None, :], line[:, None]


def paint(inks: np.ndarray, colours: Sequence[Sequence[int]], fade: int) -> np.ndarray:
    """Inks (2S, 2S) to a picture, uint8 (S, S, 3): colours, box filter, light from above.

    Args:
        inks: ink numbers.
        colours: RGB of the inks NOTHING, MAIN, SECOND, ...
        fade: how much darker the bottom is than the top, in 1/256.
    """
    fine = np.array(colours, np.uint16)[inks]
    coarse = fine[::2] + fine[1::2]
    coarse = coarse[:, ::2] + coarse[:, 1::2]
    light = 256 - fade * np.arange(len(coarse), dtype=np.uint32) // len(coarse)
    return (coarse * light[:, None, None] >> 10).astype(np.uint8)
