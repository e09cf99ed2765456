"""The embedded catalogue: procedural products of three genres, and the generic corpora its encoders start from.

A class is a product type: a family (tyres, lipsticks, cables; its nouns, brands and way to be drawn) narrowed by
a qualifier ("Winter Tyres"), with trade terms and series of its own, favourite attributes and colours, and a
variant of the family's shape. A title and a picture are two noisy views of a product of that type. Titles leave
the class's words out often and name a brand, a series or a trade term instead, some of which occur once;
pictures are turned, cropped, covered, shown in a box, wrong or generic. Each holds things the other does not.

``world`` picks other families, brands, synonyms, proportions and light (``worlds``); ``name_distance`` renames the
classes by words that no title has. The generic corpora (``generic``) share a catalogue's words and its photography,
but not the shapes of its things and not the grammar of its titles.

Every draw comes from ``random.Random`` on a string seed and every pixel from integers, so the bytes are the same
on every platform. The numbers that shape the noise were set by how hard TF-IDF finds
the titles and a small convolutional network the pictures, and not by what any adaptation gains.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import pandas as pd
from PIL import Image

from icssl_lib.config import SyntheticSource
from icssl_lib.sources.raw import CatalogueError, RawCatalogue
from icssl_lib.sources.synthetic import language
from icssl_lib.sources.synthetic.generic import generic_pictures, generic_titles
from icssl_lib.sources.synthetic.photograph import Look, photograph
from icssl_lib.sources.synthetic.worlds import Family, class_names, families_of, style_of

__all__ = ["GENRES", "PICTURE_SIZE", "TITLE_WORDS", "generic_pictures", "generic_titles", "load"]

GENRES = ("automotive", "beauty", "electronics")
TITLE_WORDS = {"automotive": 9.91, "beauty": 10.26, "electronics": 14.88}  # the paper's means, Table 1
PICTURE_SIZE = 64


@dataclass(frozen=True)
class ProductType:
    """The latent type behind a class: what its titles and pictures are drawn from."""

    family: Family
    qualifier: str
    terms: list[str]  # trade terms of this class; the later, the rarer
    brands: list[str]
    series: list[str]  # the class's own, a few for each brand
    shared_series: list[str]  # the family's
    attributes: list[str]
    colours: list[str]
    variant: tuple[int, int, int]
    accent: str


def load(name: str, source: SyntheticSource, image_size: int = PICTURE_SIZE) -> RawCatalogue:
    """The catalogue that the settings describe; its pictures are rendered when ``read_image`` asks for a row.

    Raises:
        CatalogueError: more classes than the genre has names for, or fewer than two products a class.
    """
    if source.products < 2 * source.classes:
        raise CatalogueError(
            f"dataset {name}: {source.products} products are too few for {source.classes} classes; "
            f"set `products` to {2 * source.classes} or more, or `classes` to {source.products // 2} or fewer"
        )
    sizes = _sizes(source.products, source.classes)
    families, seed, style = (
        families_of(source.world, source.genre),
        f"{source.world}/{source.genre}",
        style_of(source.world),
    )
    most = sum(len(family.qualifiers) for family in families)
    if source.classes > most:
        raise CatalogueError(
            f"dataset {name}: {source.genre} has names for {most} classes, not for {source.classes}; lower `classes`"
        )
    types = _types(families, sizes, seed)
    which = [k for k, size in enumerate(sizes) for _ in range(size)]
    Random(f"{seed}/order").shuffle(which)

    def rng(view: str, row: int) -> Random:
        return Random(f"{seed}/{source.classes}/{view}/{row}")

    def look(row: int) -> Look:
        return _look(rng("product", row), types[which[row]])

    def read_image(row: Any) -> Image.Image:
        draws, row = rng("picture", int(row)), int(row)
        other = types[draws.randrange(len(types))] if draws.random() < 0.03 else types[which[row]]
        return Image.fromarray(photograph(draws, other.family.shape, look(row), image_size, style))

    rows = range(source.products)
    titles = [_title(rng("title", row), types[which[row]], look(row), source.genre) for row in rows]
    parts = [(kind.qualifier, kind.family.nouns[0]) for kind in types]
    labels = class_names(parts, source.name_distance, seed, titles)
    table = pd.DataFrame(
        {
            "id": [f"{source.genre[:2].upper()}{row:06d}" for row in rows],
            "title": titles,
            "label": [labels[which[row]] for row in rows],
            "image": list(rows),
        }
    )
    synonyms = [word for kind in types for word in (*kind.family.nouns, kind.qualifier, *kind.terms)]
    return RawCatalogue(table, read_image, class_words=synonyms)


# --- product types ----------------------------------------------------------------------------------------


def _types(families: list[Family], sizes: list[int], seed: str) -> list[ProductType]:
    """One product type for each class size, the families mixed; a big class has more series and trade terms."""
    world = Random(f"{seed}/world")
    # Two classes a family at least: a catalogue has sister types.
    families = families[: max(1, len(sizes) // 2)]
    pool = [language.coin(world) for _ in range(3 * len(families))]
    kin = [(world.sample(pool, min(6, len(pool))), [language.coin(world) for _ in range(6)]) for _ in families]
    widest = max(len(family.qualifiers) for family in families)
    kinds = [(f, k) for k in range(widest) for f, family in enumerate(families) if k < len(family.qualifiers)]
    kinds = kinds[: len(sizes)]
    world.shuffle(kinds)
    types = []
    for (f, k), size in zip(kinds, sizes, strict=True):
        family, (brands, shared) = families[f], kin[f]
        rng = Random(f"{seed}/type/{family.shape.drawer.__name__}/{k}")
        types.append(
            ProductType(
                family=family,
                qualifier=family.qualifiers[k],
                brands=rng.sample(brands, min(4, len(brands))),
                attributes=rng.sample(family.attributes, 3),
                shared_series=shared,
                colours=rng.sample(language.COLOUR_NAMES, 3),
                accent=rng.choice(language.COLOUR_NAMES),
                terms=[language.coin(rng) for _ in range(4 + size // 16)],
                series=[language.coin(rng) for _ in range(4 + size // 8)],
                # Neighbours differ in all three; 27 variants before any comes again.
                variant=(k % 3, (k + k // 3) % 3, (k + 2 * (k // 3) + k // 9) % 3),
            )
        )
    return types


def _sizes(products: int, classes: int) -> list[int]:
    """Products of each class, descending: two each, the rest by a Zipf-Mandelbrot law, 1 / (rank + 3)."""
    weights = [10**6 // (rank + 3) for rank in range(classes)]
    sizes = [2 + (products - 2 * classes) * weight // sum(weights) for weight in weights]
    for k in range(products - sum(sizes)):
        sizes[k % classes] += 1
    return sizes


# --- one product ------------------------------------------------------------------------------------------


def _look(rng: Random, kind: ProductType) -> Look:
    colour = language.zipf(rng, kind.colours) if rng.random() < 0.65 else rng.choice(language.COLOUR_NAMES)
    pack = rng.choice((2, 2, 4)) if rng.random() < 0.12 else 1
    # A product need not look like its type's prototype in every respect.
    variant = tuple(rng.randrange(3) if rng.random() < 0.12 else part for part in kind.variant)
    return Look(colour, pack, variant, kind.accent if rng.random() < 0.6 else rng.choice(language.COLOUR_NAMES))


def _title(rng: Random, kind: ProductType, look: Look, genre: str) -> str:
    """One noisy title: brand, series, a name of the type or none, then attributes and talk up to a drawn length."""
    chance = rng.random
    head = [language.zipf(rng, kind.brands)] if chance() < 0.85 else []
    if chance() < 0.6:
        head.append(language.zipf(rng, kind.series) if chance() < 0.75 else rng.choice(kind.shared_series))
    noun = rng.choice(kind.family.nouns)
    names = [
        f"{kind.qualifier} {noun}",
        noun,
        kind.qualifier,
        language.zipf(rng, kind.terms),
        f"{language.zipf(rng, kind.terms)} {noun}",
    ]
    named = rng.choices([*names, ""], cum_weights=(20, 38, 46, 66, 76, 100))[0]
    if chance() < 0.35:
        head.append(language.code(rng))
    details = []
    if chance() < 0.6:
        details.append(language.zipf(rng, kind.attributes) if chance() < 0.6 else rng.choice(kind.family.attributes))
    if chance() < 0.4:
        details.append(look.colour if chance() < 0.9 else rng.choice(language.COLOUR_NAMES))
    if chance() < 0.3:
        details.append(rng.choice(language.MATERIALS))
    if look.pack > 1 and chance() < 0.8:
        details.append(rng.choice((f"{look.pack} pack", f"(pack of {look.pack})", f"set of {look.pack}")))
    if genre == "automotive" and chance() < 0.4:
        year = 1995 + rng.randrange(25)
        details.append(f"for {year}-{year + 1 + rng.randrange(6)} {language.coin(rng)}")
    words = " ".join([*head, named]).split()
    # Mean length: the paper's. A sum of three draws; a hundredth of a word is a chance of one more.
    hundredths = round(100 * TITLE_WORDS[genre])
    length = hundredths // 100 - 6 + sum(rng.randrange(5) for _ in range(3)) + (rng.randrange(100) < hundredths % 100)
    while len(words) + len(" ".join(details).split()) < length:
        talk = (
            rng.choice(language.MARKETING),
            language.measure(rng),
            rng.choice(kind.family.attributes),
            language.code(rng),
            "-",
            rng.choice(language.SEASONS),
        )
        details.append(rng.choices(talk, cum_weights=(45, 60, 70, 78, 90, 100))[0])
    rng.shuffle(details)
    words = (words + " ".join(details).split())[: max(length, 3)]
    style = chance()
    words = [language.typo(rng, word) if chance() < 0.02 else word for word in words]
    if style < 0.06:
        return " ".join(words).upper()
    return " ".join(words if style < 0.2 else [word[:1].upper() + word[1:] for word in words])
