"""The embedded catalogue: procedural products of three genres, and the generic corpora its encoders start from.

A class is a product type: a family (tyres, lipsticks, cables; its nouns, brands and way to be drawn) narrowed by
a qualifier ("Winter Tyres"), with trade terms and series of its own, favourite attributes and colours, and a
variant of the family's shape. A title and a picture are two noisy views of a product of that type. Titles leave
the class's words out often and name a brand, a series or a trade term instead, some of which occur once;
pictures are turned, cropped, covered, shown in a box, wrong or generic. Each holds things the other does not.

Every draw comes from ``random.Random`` on a string seed and every pixel from integers, so the bytes are the same
on every platform. The numbers that shape the noise were set by how hard TF-IDF finds
the titles and a small convolutional network the pictures, and not by what any adaptation gains.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from icssl_lib.config import SyntheticSource
from icssl_lib.sources.raw import CatalogueError, RawCatalogue
from icssl_lib.sources.synthetic import shapes

GENRES = ("automotive", "beauty", "electronics")
TITLE_WORDS = {"automotive": 9.91, "beauty": 10.26, "electronics": 14.88}  # the paper's means, Table 1
PICTURE_SIZE = 64

# One line is a family: how it is drawn | nouns, the first names the classes | qualifiers | attributes.
_FAMILIES = """
automotive
tyre | tires, tire, tyre, radial, rubber | winter, all season, trailer, mud terrain, motorcycle, racing | 205/55R16, 225/45R17, 185/65R15, tubeless, 91V, M+S, 8 ply, black wall
jug | fluids, fluid, oil, lubricant | synthetic, transmission, diesel, two stroke, brake, coolant | 5W-30, 10W-40, 1 quart, 5 quart, 1 liter, high mileage, SAE 30, API SN
headlamp | lights, lamp, headlight, light assembly | fog, tail, driving, corner, work, projector | H4, H11, LED, halogen, clear lens, smoke lens, 55W, 6000K
wiper | wiper blades, wiper, blade, wiper arm | beam, rear, hybrid, snow, conventional, truck | 18 inch, 22 inch, 26 inch, hook mount, bracketless, silicone
battery | batteries, battery, accumulator, cell | AGM, marine, powersport, golf cart, start stop, lithium | 12V, 6V, 750 CCA, 35Ah, maintenance free, sealed, group 24
floormat | floor mats, mat, liner, carpet | cargo, rubber, carpeted, trunk, all weather, dashboard | front row, 4 piece, trim to fit, heel pad, anti slip, custom fit
doormirror | mirrors, mirror, mirror glass, side view | towing, blind spot, power folding, convex, rear view, motorbike | left side, right side, heated, manual, driver side, passenger side
sparkplug | spark plugs, plug, ignition plug, igniter | iridium, platinum, copper, glow, resistor, small engine | 14mm, gap .044, 5/8 hex, pre gapped, long reach, heat range 6
jack | jacks, jack, lift, stand | scissor, bottle, floor, farm, pneumatic, motorcycle lift | 2 ton, 3 ton, low profile, 15 inch lift, steel, with handle
helmet | helmets, helmet, headgear, shell | full face, modular, open face, motocross, half, snowmobile | DOT, size M, size XL, dual visor, bluetooth ready, anti fog
rim | wheels, wheel, rim, alloy | steel, forged, chrome, beadlock, spare, hubcap | 17x8, 15x7, 5x114.3, 5x100, offset 35, 5 lug, gloss
airfilter | filters, filter, element, cleaner | air, cabin, oil, fuel, performance intake, hydraulic | washable, OE replacement, charcoal, pleated, panel, conical
brakedisc | brake rotors, rotor, disc, brakes | drilled, slotted, vented, carbon, drum, ceramic | front pair, rear pair, 280mm, 5 lug, zinc coated, with pads
shock | shocks, shock absorber, strut, damper | coilover, gas, air suspension, steering, leaf helper, rear | front left, lowering, adjustable, monotube, 2 inch lift, loaded
seat | seat covers, seat, cushion, cover | bucket, bench, child, heated, sheepskin, massage | front pair, neoprene, airbag safe, 9 piece, faux leather, universal fit
steering | steering wheels, steering wheel, wheel, grip | racing, wood, leather, boat, quick release, flat bottom | 14 inch, 350mm, 6 bolt, suede, deep dish, with horn
exhaust | mufflers, exhaust, muffler, tailpipe | performance, turbo, dual tip, cat back, slip on, resonator | stainless, 2.5 inch inlet, 3 inch outlet, bolt on, polished, welded
wrench | tools, wrench, spanner, tool set | torque, ratchet, lug, pipe, impact, hex | 10mm, 1/2 drive, 3/8 drive, chrome vanadium, metric, 12 point
beauty
lipstick | lipsticks, lipstick, lip color, lip | matte, liquid, moisturizing, gloss, tinted | long lasting, satin finish, 3.5g, vitamin E, creamy, waterproof
pump | lotions, lotion, cleanser, wash | body, hand, baby, foaming, shampoo | 16 oz, 500 ml, aloe, fragrance free, daily, pH balanced
jar | creams, cream, moisturizer, balm | anti aging, night, eye, hair mask, body butter | 50 ml, 1.7 oz, retinol, collagen, shea, dry skin
brush | brushes, brush, applicator, bristle | foundation, powder, eyeshadow, kabuki, contour | synthetic hair, soft, angled, vegan, wood handle, duo fiber
handmirror | makeup mirrors, mirror, vanity, looking glass | lighted, magnifying, travel, tabletop, wall | 10x, LED, double sided, rechargeable, 8 inch, foldable
polish | nail polishes, nail polish, lacquer, enamel | gel, base coat, top coat, glitter, quick dry | 15 ml, .5 oz, UV, high shine, chip resistant, salon
tube | sunscreens, tube, gel, sunblock | sport, face, mineral, tanning, after sun | SPF 50, SPF 30, 3 oz, water resistant, zinc oxide, non greasy
dryer | hair dryers, dryer, blower, blow dryer | ionic, travel, bonnet, diffuser, salon | 1875W, ceramic, cool shot, dual voltage, tourmaline, quiet
perfume | perfumes, perfume, fragrance, eau de toilette | women's, men's, unisex, body mist, gift set | 100 ml, 3.4 oz, spray, floral, woody, vanilla, tester
comb | combs, comb, detangler, hair comb | wide tooth, rat tail, beard, pocket, detangling | anti static, carbon fiber, handmade, fine tooth, 7 inch, sandalwood
soap | soaps, soap, bar, cleansing bar | charcoal, goat milk, glycerin, oatmeal, black | 4 oz, handmade, unscented, lavender, exfoliating, natural
palette | palettes, palette, compact, powder | eyeshadow, blush, contour, concealer, bronzer | 12 shades, pigmented, shimmer, with mirror, blendable, nude
dropper | serums, serum, essence, oil | vitamin C, hyaluronic, argan, rose, beard | 30 ml, 1 oz, cold pressed, brightening, organic, glass bottle
razor | razors, razor, shaver, blade | safety, disposable, cartridge, bikini, straight | 5 blade, refill, sensitive, pivoting head, chrome, lubricating strip
spraycan | hair sprays, spray, hairspray, mist | dry shampoo, texturizing, heat protectant, root, deodorant | 10 oz, strong hold, travel size, humidity, volumizing, aerosol
scissors | scissors, shears, clipper, trimmer | barber, thinning, nail, eyebrow, nose | 6 inch, Japanese steel, left handed, sharp, tension screw, rounded tip
straightener | hair irons, iron, straightener, wand | flat, curling, crimping, hot comb, mini | 1 inch, 450F, titanium, auto shut off, tourmaline, adjustable
electronics
phone | phones, phone, smartphone, handset | unlocked, senior, rugged, prepaid, refurbished, dual sim | 64GB, 128GB, 5G, 6.1 inch, 48MP, GSM, fast charging
laptop | laptops, laptop, notebook, computer | gaming, convertible, business, student, chromebook, workstation | 8GB RAM, 512GB SSD, 15.6 inch, i5, FHD, backlit, Windows
headphones | headphones, headset, earphones, cans | wireless, noise cancelling, earbud, sports, studio, kids | over ear, bluetooth, 40mm drivers, with mic, 30 hours, foldable
camera | cameras, camera, camcorder, digicam | mirrorless, compact, instant, trail, security, action | 20MP, 4K, 10x zoom, wifi, night vision, APS-C, 1080p
cable | cables, cable, cord, lead | charging, HDMI, ethernet, audio, extension, patch | 6 ft, 10 ft, 3 pack, braided, gold plated, USB C, 4K 60Hz
speaker | speakers, speaker, loudspeaker, sound system | bookshelf, portable, tower, subwoofer, ceiling, soundbar | 100W, 8 ohm, stereo, 2.1 channel, bass, IPX7, pair
monitor | monitors, monitor, display, screen | curved, ultrawide, touch, portable, television, medical | 27 inch, 144Hz, IPS, QHD, VESA, 1ms, HDMI
keyboard | keyboards, keyboard, keypad, keys | mechanical, ergonomic, numeric, gaming, bluetooth, folding | 104 keys, RGB, blue switches, spill resistant, US layout, quiet
mouse | mice, mouse, pointer, trackball | gaming, vertical, optical, travel, silent, wireless | 1600 DPI, 2.4G, USB receiver, 6 buttons, ambidextrous, scroll
remote | remote controls, remote, controller, clicker | universal, voice, replacement, presentation, garage, learning | for TV, infrared, backlit, 8 devices, AAA, no setup
usbdrive | flash drives, flash drive, memory, stick | encrypted, OTG, dual, novelty, recorder, receiver | 32GB, 64GB, USB 3.0, 150MB/s, metal, keychain, bulk
router | routers, router, access point, modem | mesh, travel, gaming, cable, cellular, outdoor | AC1200, WiFi 6, dual band, gigabit, 4 port, MU-MIMO
watch | smart watches, watch, fitness tracker, band | running, kids, hybrid, GPS, sleep, diving | heart rate, 5ATM, 44mm, AMOLED, 7 day battery, pedometer
gamepad | game controllers, gamepad, joystick, controller | wired, pro, arcade, mobile, retro, racing | vibration, for PC, dual shock, bluetooth, turbo, rechargeable
printer | printers, printer, copier, scanner | laser, inkjet, photo, label, receipt, all in one | 30 ppm, duplex, wifi, 1200 dpi, color, toner, ADF
microphone | microphones, microphone, mic, recorder | condenser, dynamic, lavalier, karaoke, conference, podcast | cardioid, XLR, USB, 48V, shock mount, 192kHz, pop filter
adapter | chargers, charger, adapter, power supply | wall, travel, car, laptop, wireless, surge | 65W, 12V 2A, USB C, fast charge, 4 port, UL listed
everyday
cup | mugs, mug, cup, tumbler | coffee, tea, travel, beer, espresso | 12 oz, dishwasher safe, ceramic, with lid
chair | chairs, chair, stool, armchair | dining, folding, garden, desk, rocking | set of 2, oak, padded, 18 inch seat
ball | balls, ball, sphere, football | soccer, beach, yoga, tennis, basket | size 5, inflatable, official, 65cm
book | books, book, journal, notebook | cook, sketch, address, guest, travel | hardcover, 200 pages, lined, A5
lamp | lamps, lamp, shade, lantern | desk, bedside, floor, reading, night | E27, dimmable, linen, 40W
bag | bags, bag, tote, purse | shopping, shoulder, gym, lunch, evening | canvas, zipper, 10 liter, water resistant
shirt | shirts, shirt, tee, top | polo, work, long sleeve, running, undershirt | cotton, size L, slim fit, crew neck
clock | clocks, clock, timer, alarm | wall, alarm, kitchen, cuckoo, digital | 12 inch, silent, battery operated, roman numerals
"""  # noqa: E501
# Qualifiers of any family, for the classes beyond a family's own.
_GENERAL = """professional, mini, heavy duty, compact, vintage, premium, economy, kids, outdoor, industrial, deluxe,
collector, emergency, classic, commercial, junior, hobby, military, marine grade, replacement, show, rental,
prototype, export""".replace("\n", " ").split(", ")
_COLOURS = {
    "black": (38, 38, 42),
    "white": (228, 228, 224),
    "red": (200, 38, 40),
    "blue": (36, 84, 186),
    "silver": (176, 182, 188),
    "grey": (112, 116, 120),
    "green": (44, 136, 70),
    "gold": (206, 166, 58),
    "pink": (236, 140, 172),
    "purple": (124, 62, 156),
    "orange": (236, 124, 36),
    "yellow": (240, 208, 52),
    "brown": (116, 74, 44),
    "teal": (32, 148, 150),
    "navy": (26, 40, 88),
    "beige": (214, 194, 160),
}
_NAMES = list(_COLOURS)
_MATERIALS = ["aluminum", "plastic", "stainless steel", "rubber", "leather", "glass", "nylon", "wood", "ceramic"]
_MARKETING = """new, best, premium, quality, original, genuine, great gift, value pack, hot sale, upgraded,
free shipping, limited edition, easy to use, durable, brand new, top rated, 100%, improved, clearance, bestseller,
genuine quality, for men and women, made in usa, with case, in retail box, eco friendly, new version,
multi purpose""".replace("\n", " ").split(", ")
_SEASONS = ["spring", "summer", "autumn", "winter", "holiday", "back to school"]
# Invented names are made of these.
_ONSETS = [*"bcdfghjklmnprstvwxz", "br", "cr", "dr", "fl", "gr", "kl", "pr", "qu", "sk", "st", "tr"]
_VOWELS = [*"aeiouaeiouy", "ai", "ea", "io", "ou"]
_INNER, _ENDS = ["", "", "", "n", "r", "l", "s", "m"], ["", "n", "r", "l", "s", "x", "m", "t", "nd", "rk", "ck", "th"]


@dataclass(frozen=True)
class ProductType:
    """The latent type behind a class: what its titles and pictures are drawn from."""

    label: str
    nouns: list[str]
    qualifier: str
    terms: list[str]  # trade terms of this class; the later, the rarer
    brands: list[str]
    series: list[str]  # the class's own, a few for each brand
    shared_series: list[str]  # the family's
    attributes: list[str]
    family_attributes: list[str]
    colours: list[str]
    drawer: shapes.Drawer
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
    types = _types(source.genre, sizes, f"{source.seed}/{source.genre}", name)
    which = [k for k, size in enumerate(sizes) for _ in range(size)]
    Random(f"{source.seed}/{source.genre}/order").shuffle(which)

    def rng(view: str, row: int) -> Random:
        return Random(f"{source.seed}/{source.genre}/{source.classes}/{view}/{row}")

    def look(row: int) -> "Look":
        return _look(rng("product", row), types[which[row]])

    def read_image(row: Any) -> Image.Image:
        draws, row = rng("picture", int(row)), int(row)
        other = types[draws.randrange(len(types))] if draws.random() < 0.03 else types[which[row]]
        return Image.fromarray(_picture(draws, other, look(row), image_size))

    rows = range(source.products)
    titles = [_title(rng("title", row), types[which[row]], look(row), source.genre) for row in rows]
    table = pd.DataFrame(
        {
            "id": [f"{source.genre[:2].upper()}{row:06d}" for row in rows],
            "title": titles,
            "label": [types[which[row]].label for row in rows],
            "image": list(rows),
        }
    )
    return RawCatalogue(table, read_image)


def generic_titles(n: int, seed: int) -> list[str]:
    """Titles in the catalogues' language, of all genres and everyday things, with other brands, series and terms.

    Nouns, qualifiers, attributes and colours are the language's, so an encoder can know them; no trade term or
    series of a catalogue is meant to occur.
    """
    types, titles = _generic_types(seed), []
    for k in range(n):
        rng = Random(f"generic/{seed}/title/{k}")
        kind = rng.choice(types)
        titles.append(_title(rng, kind, _look(rng, kind), rng.choice(GENRES)))
    return titles


def generic_pictures(n: int, seed: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of all genres and everyday things in any variant and colour, labelled by what is drawn.

    Returns:
        uint8 (n, image_size, image_size, 3) and int64 (n,), the number of the drawer in 0..59.
    """
    drawers = [drawer for group in shapes.DRAWERS.values() for drawer in group]
    types = {kind.drawer: kind for kind in _generic_types(seed)}
    pictures, labels = np.empty((n, image_size, image_size, 3), np.uint8), np.empty(n, np.int64)
    for k in range(n):
        rng = Random(f"generic/{seed}/picture/{k}")
        labels[k] = rng.randrange(len(drawers))
        look = Look(rng.choice(_NAMES), 1, tuple(rng.randrange(3) for _ in range(3)), rng.choice(_NAMES))
        pictures[k] = _picture(rng, types[drawers[labels[k]]], look, image_size)
    return pictures, labels


# --- product types ----------------------------------------------------------------------------------------


@lru_cache
def _families(genre: str) -> list[tuple[shapes.Drawer, list[str], list[str], list[str]]]:
    """(drawer, nouns, qualifiers, attributes) of one genre."""
    drawers = {drawer.__name__: drawer for drawer in shapes.DRAWERS[genre]}
    families, current = [], ""
    for line in _FAMILIES.strip().splitlines():
        if "|" not in line:
            current = line
        elif current == genre:
            name, *lists = line.split(" | ")
            nouns, qualifiers, attributes = (part.split(", ") for part in lists)
            families.append(
                (drawers[name], nouns, qualifiers + [q for q in _GENERAL if q not in qualifiers], attributes)
            )
    return families


def _types(genre: str, sizes: list[int], seed: str, name: str) -> list[ProductType]:
    """One product type for each class size, the families mixed; a big class has more series and trade terms."""
    families = _families(genre)
    most = sum(len(qualifiers) for _, _, qualifiers, _ in families)
    if len(sizes) > most:
        raise CatalogueError(
            f"dataset {name}: {genre} has names for {most} classes, not for {len(sizes)}; lower `classes`"
        )
    world = Random(f"{seed}/world")
    # Two classes a family at least: a catalogue has sister types.
    families = families[: max(1, len(sizes) // 2)]
    pool = [_coin(world) for _ in range(3 * len(families))]
    kin = [(world.sample(pool, min(6, len(pool))), [_coin(world) for _ in range(6)]) for _ in families]
    widest = max(len(qualifiers) for _, _, qualifiers, _ in families)
    kinds = [(f, k) for k in range(widest) for f in range(len(families)) if k < len(families[f][2])][: len(sizes)]
    world.shuffle(kinds)
    types = []
    for (f, k), size in zip(kinds, sizes, strict=True):
        (drawer, nouns, qualifiers, attributes), (brands, shared) = families[f], kin[f]
        rng = Random(f"{seed}/type/{drawer.__name__}/{k}")
        types.append(
            ProductType(
                label=f"{qualifiers[k]} {nouns[0]}".title().replace("'S", "'s"),
                nouns=nouns,
                qualifier=qualifiers[k],
                brands=rng.sample(brands, min(4, len(brands))),
                attributes=rng.sample(attributes, 3),
                family_attributes=attributes,
                shared_series=shared,
                colours=rng.sample(_NAMES, 3),
                accent=rng.choice(_NAMES),
                terms=[_coin(rng) for _ in range(4 + size // 16)],
                series=[_coin(rng) for _ in range(4 + size // 8)],
                drawer=drawer,
                # Neighbours differ in all three; 27 variants before any comes again.
                variant=(k % 3, (k + k // 3) % 3, (k + 2 * (k // 3) + k // 9) % 3),
            )
        )
    return types


@lru_cache
def _generic_types(seed: int) -> list[ProductType]:
    """Every family with every qualifier, in a world of its own."""
    kinds = []
    for genre in shapes.DRAWERS:
        most = sum(len(qualifiers) for _, _, qualifiers, _ in _families(genre))
        kinds += _types(genre, [32] * most, f"generic/{seed}/{genre}", "generic")
    return kinds


def _sizes(products: int, classes: int) -> list[int]:
    """Products of each class, descending: two each, the rest by a Zipf-Mandelbrot law, 1 / (rank + 3)."""
    weights = [10**6 // (rank + 3) for rank in range(classes)]
    sizes = [2 + (products - 2 * classes) * weight // sum(weights) for weight in weights]
    for k in range(products - sum(sizes)):
        sizes[k % classes] += 1
    return sizes


def _coin(rng: Random) -> str:
    """An invented name of two or three syllables."""
    inner = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_INNER) for _ in range(1 + (rng.random() < 0.3))]
    return "".join(inner) + rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ENDS)


def _zipf(rng: Random, items: list[Any]) -> Any:
    """One of the items, the k-th with weight 1 / (k + 1)."""
    return rng.choices(items, cum_weights=list(accumulate(10**6 // (k + 1) for k in range(len(items)))))[0]


# --- one product ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What the title and the picture of one product both may show."""

    colour: str
    pack: int
    variant: tuple[int, ...]
    accent: str


def _look(rng: Random, kind: ProductType) -> Look:
    colour = _zipf(rng, kind.colours) if rng.random() < 0.65 else rng.choice(_NAMES)
    pack = rng.choice((2, 2, 4)) if rng.random() < 0.12 else 1
    # A product need not look like its type's prototype in every respect.
    variant = tuple(rng.randrange(3) if rng.random() < 0.12 else part for part in kind.variant)
    return Look(colour, pack, variant, kind.accent if rng.random() < 0.6 else rng.choice(_NAMES))


def _title(rng: Random, kind: ProductType, look: Look, genre: str) -> str:
    """One noisy title: brand, series, a name of the type or none, then attributes and talk up to a drawn length."""
    chance = rng.random
    head = [_zipf(rng, kind.brands)] if chance() < 0.85 else []
    if chance() < 0.6:
        head.append(_zipf(rng, kind.series) if chance() < 0.75 else rng.choice(kind.shared_series))
    noun = rng.choice(kind.nouns)
    names = [
        f"{kind.qualifier} {noun}",
        noun,
        kind.qualifier,
        _zipf(rng, kind.terms),
        f"{_zipf(rng, kind.terms)} {noun}",
    ]
    named = rng.choices([*names, ""], cum_weights=(20, 38, 46, 66, 76, 100))[0]
    if chance() < 0.35:
        head.append(_code(rng))
    details = []
    if chance() < 0.6:
        details.append(_zipf(rng, kind.attributes) if chance() < 0.6 else rng.choice(kind.family_attributes))
    if chance() < 0.4:
        details.append(look.colour if chance() < 0.9 else rng.choice(_NAMES))
    if chance() < 0.3:
        details.append(rng.choice(_MATERIALS))
    if look.pack > 1 and chance() < 0.8:
        details.append(rng.choice((f"{look.pack} pack", f"(pack of {look.pack})", f"set of {look.pack}")))
    if genre == "automotive" and chance() < 0.4:
        year = 1995 + rng.randrange(25)
        details.append(f"for {year}-{year + 1 + rng.randrange(6)} {_coin(rng)}")
    words = " ".join([*head, named]).split()
    # Mean length: the paper's. A sum of three draws; a hundredth of a word is a chance of one more.
    hundredths = round(100 * TITLE_WORDS[genre])
    length = hundredths // 100 - 6 + sum(rng.randrange(5) for _ in range(3)) + (rng.randrange(100) < hundredths % 100)
    while len(words) + len(" ".join(details).split()) < length:
        talk = (
            rng.choice(_MARKETING),
            _measure(rng),
            rng.choice(kind.family_attributes),
            _code(rng),
            "-",
            rng.choice(_SEASONS),
        )
        details.append(rng.choices(talk, cum_weights=(45, 60, 70, 78, 90, 100))[0])
    rng.shuffle(details)
    words = (words + " ".join(details).split())[: max(length, 3)]
    style = chance()
    words = [_typo(rng, word) if chance() < 0.02 else word for word in words]
    if style < 0.06:
        return " ".join(words).upper()
    return " ".join(words if style < 0.2 else [word[:1].upper() + word[1:] for word in words])


def _code(rng: Random) -> str:
    """A model code, for example KR-2045."""
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVXZ") for _ in range(1 + rng.randrange(3)))
    return letters + rng.choice(("-", "")) + str(rng.randrange(10, 9999))


def _measure(rng: Random) -> str:
    """A size of anything, for example 12 inch."""
    return f"{rng.randrange(1, 40)} {rng.choice(('inch', 'cm', 'oz', 'pcs', 'lbs', 'mm'))}"


def _typo(rng: Random, word: str) -> str:
    """Two neighbours swapped, a letter lost or a letter doubled."""
    at = rng.randrange(len(word))
    swapped = word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
    return rng.choice((swapped, word[:at] + word[at + 1 :] or word, word[: at + 1] + word[at:]))


_grid = lru_cache(maxsize=2)(shapes.grid)
# (cos, sin, length) of exact turns: none, and about 14, 19, 28 and 37 degrees.
_TURNS = ((1, 0, 1), (63, 16, 65), (35, 12, 37), (15, 8, 17), (4, 3, 5))
_FAR = 10**4  # outside of every drawing


def _picture(rng: Random, kind: ProductType, look: Look, size: int) -> np.ndarray:
    """Photograph one product, uint8 (size, size, 3): view, background, box, pack, clutter, or a placeholder."""
    chance = rng.random
    x, y = _grid(size)
    scene = shapes.Canvas(x, y)
    if chance() < 0.03:  # no photograph: the brand's sign
        scene.disc(0, 0, 60, shapes.CLUTTER, 40)
        scene.box(-34, -8, 34, 8, shapes.LIGHT)
    else:
        scene.inks = _view(rng, kind, look, x, y)
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
    background = _several(rng, 180, 256, 3) if tinted else _several(rng, 246, 256, 3)
    if floor:
        scene.inks[(scene.inks == shapes.NOTHING) & (scene.v > 8 * 50)] = shapes.FLOOR
    main, second, accent = (_COLOURS[name] for name in (look.colour, rng.choice(_NAMES), look.accent))
    dark, light, metal, glass = (40, 40, 44), (232, 232, 232), (158, 164, 172), (150, 200, 225)
    inks = [main, second, dark, light, metal, glass, accent, _several(rng, 90, 240, 3)]
    # No two photographs have quite the same colours.
    inks = [[min(255, max(0, part + rng.randrange(-14, 15))) for part in colour] for colour in inks]
    return shapes.paint(scene.inks, [background, *inks, [part * 3 // 4 for part in background]], rng.randrange(60))


def _several(rng: Random, low: int, high: int, n: int) -> list[int]:
    return [rng.randrange(low, high) for _ in range(n)]


def _view(rng: Random, kind: ProductType, look: Look, x: np.ndarray, y: np.ndarray) -> np.ndarray:
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
        thing = shapes.Canvas(u, v)
        kind.drawer(thing, *look.variant)
        return thing.inks
    box, thing = shapes.Canvas(u, v), shapes.Canvas(5 * u // 3, 5 * v // 3)
    box.box(-80, -90, 80, 90, shapes.SECOND)
    box.box(-66, -64, 66, 64, shapes.LIGHT)
    kind.drawer(thing, *look.variant)
    seen = (thing.inks > 0) & (box.inks == shapes.LIGHT)
    return np.where(seen, thing.inks, box.inks)
