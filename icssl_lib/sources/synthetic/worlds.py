"""What sets one world of the embedded catalogue apart: its families, their words and shapes, its light, its taxonomy.

World 0 is the quick study's: every family of the genre, as ``language`` and ``shapes`` have it. Any other draws anew.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from icssl_lib.sources.synthetic import language, shapes

OWN, EVERYDAY = 9, 3  # families of a world above 0: of its genre, and of what any shop may sell


@dataclass(frozen=True)
class Family:
    """Things of one kind: how they are drawn, and their words."""

    shape: shapes.Shape
    nouns: list[str]  # the first names the classes
    qualifiers: list[str]
    attributes: list[str]


@dataclass(frozen=True)
class Style:
    """How a world's photographs look."""

    backdrop: tuple[int, int, int] = (255, 255, 255)  # of a white background, RGB
    stripe: int = 0  # width of the stripes behind the product, design units; 0: none
    upright: bool = False  # the stripes
    floor: int = 50  # where a floor begins, design units below the centre
    fade: int = 60  # at most this much darker at the bottom, in 1/256
    tint: tuple[int, int, int] = (0, 0, 0)  # of the light, RGB
    strength: int = 0  # of the tint, in 1/256

    def lit(self, colour: Iterable[int]) -> list[int]:
        """An RGB colour under the world's light."""
        mixed = zip(colour, self.tint, strict=True)
        return [(part * (256 - self.strength) + tint * self.strength) >> 8 for part, tint in mixed]

    def behind(self, colour: Iterable[int]) -> list[int]:
        """The colour of a background that would be ``colour`` in world 0."""
        return [part * most // 255 for part, most in zip(colour, self.backdrop, strict=True)]


@lru_cache
def vocabulary(genre: str) -> list[Family]:
    """The families of a genre, or everyday's, as ``language`` lists them; qualifiers of any family follow their own."""
    drawers = {drawer.__name__: drawer for drawer in shapes.DRAWERS[genre]}
    families, current = [], ""
    for line in language.FAMILIES.strip().splitlines():
        if "|" not in line:
            current = line
        elif current == genre:
            name, *lists = line.split(" | ")
            nouns, qualifiers, attributes = (part.split(", ") for part in lists)
            general = [q for q in language.GENERAL if q not in qualifiers]
            families.append(Family(shapes.Shape(drawers[name]), nouns, qualifiers + general, attributes))
    return families


@lru_cache
def families_of(world: int, genre: str) -> list[Family]:
    """The families of a genre in a world; a catalogue of few classes has the first ones."""
    if world == 0:
        return vocabulary(genre)
    rng = Random(f"{world}/{genre}/families")
    drawn = rng.sample(vocabulary(genre), OWN) + rng.sample(vocabulary("everyday"), EVERYDAY)
    rng.shuffle(drawn)
    families = []
    for family in drawn:
        families.append(_redrawn(rng, family, {other.nouns[0] for other in families}))
    return families


def _redrawn(rng: Random, family: Family, named: set[str]) -> Family:
    """A family in another world. named: nouns that name the classes of others already."""
    first = rng.choice([noun for noun in family.nouns if noun not in named])
    others = rng.sample([noun for noun in family.nouns if noun != first], len(family.nouns) - 2)
    own = [q for q in family.qualifiers if q not in language.GENERAL]
    general = [q for q in family.qualifiers if q in language.GENERAL]
    rng.shuffle(general)
    qualifiers = rng.sample(own, len(own) * 2 // 3) + general[:4]
    rng.shuffle(qualifiers)
    arguments = tuple(tuple(rng.sample(range(3), 3)) for _ in range(3))
    shape = shapes.Shape(family.shape.drawer, arguments, tuple(rng.randrange(60, 126) for _ in range(4)))
    nouns = [first, *others, language.coin(rng), language.coin(rng)]
    return Family(shape, nouns, qualifiers + general[4:], family.attributes)


@lru_cache
def style_of(world: int) -> Style:
    if world == 0:
        return Style()
    rng = Random(f"{world}/style")
    return Style(
        backdrop=tuple(rng.randrange(150, 256) for _ in range(3)),
        stripe=rng.choice((0, 8, 12, 20)),
        upright=rng.random() < 0.5,
        floor=rng.randrange(20, 80),
        fade=rng.randrange(20, 140),
        tint=tuple(rng.randrange(256) for _ in range(3)),
        strength=rng.randrange(20, 90),
    )


def class_names(parts: list[tuple[str, str]], distance: float, seed: str, titles: list[str]) -> list[str]:
    """Name each class; a share ``distance`` of the words that names are made of is a taxonomy's, which no title has.

    A word stands for itself or for one invented word in all names of the same qualifier, or of the same noun. The
    order in which words give way is seeded, so a word that does at .3 does at .6, to the same one.

    Args:
        parts: qualifier and noun of each class.
        distance: 0 to 1.
        seed: of the invented words and of the order.
        titles: the catalogue's.
    """
    words = {
        (part, phrase, k) for pair in parts for part, phrase in enumerate(pair) for k in range(len(phrase.split()))
    }
    order, rng = sorted(words), Random(f"{seed}/taxonomy")
    rng.shuffle(order)
    used = {word for text in (*titles, *(" ".join(pair) for pair in parts)) for word in words_of(text)}
    taxonomy = {}
    for word in order[: round(distance * len(order))]:
        while (coined := language.coin(rng)) in used:
            pass
        used.add(coined)
        taxonomy[word] = coined

    def renamed(part: int, phrase: str) -> list[str]:
        return [taxonomy.get((part, phrase, k), word) for k, word in enumerate(phrase.split())]

    names = [" ".join([*renamed(0, qualifier), *renamed(1, noun)]) for qualifier, noun in parts]
    return [name.title().replace("'S", "'s") for name in names]


def words_of(text: str) -> list[str]:
    """Runs of letters, in small letters."""
    return re.findall(r"[a-z]+", text.lower())
