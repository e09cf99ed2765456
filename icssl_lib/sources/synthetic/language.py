"""The words of the catalogues and of the generic corpora: families of things, colours, talk, invented names."""

from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Any

# One line is a family: how it is drawn | nouns, the first names the classes | qualifiers | attributes.
FAMILIES = """
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
GENERAL = """professional, mini, heavy duty, compact, vintage, premium, economy, kids, outdoor, industrial, deluxe,
collector, emergency, classic, commercial, junior, hobby, military, marine grade, replacement, show, rental,
prototype, export""".replace("\n", " ").split(", ")
COLOURS = {
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
COLOUR_NAMES = list(COLOURS)
MATERIALS = ["aluminum", "plastic", "stainless steel", "rubber", "leather", "glass", "nylon", "wood", "ceramic"]
MARKETING = """new, best, premium, quality, original, genuine, great gift, value pack, hot sale, upgraded,
free shipping, limited edition, easy to use, durable, brand new, top rated, 100%, improved, clearance, bestseller,
genuine quality, for men and women, made in usa, with case, in retail box, eco friendly, new version,
multi purpose""".replace("\n", " ").split(", ")
SEASONS = ["spring", "summer", "autumn", "winter", "holiday", "back to school"]
# Invented names are made of these.
_ONSETS = [*"bcdfghjklmnprstvwxz", "br", "cr", "dr", "fl", "gr", "kl", "pr", "qu", "sk", "st", "tr"]
_VOWELS = [*"aeiouaeiouy", "ai", "ea", "io", "ou"]
_INNER, _ENDS = ["", "", "", "n", "r", "l", "s", "m"], ["", "n", "r", "l", "s", "x", "m", "t", "nd", "rk", "ck", "th"]


def coin(rng: Random) -> str:
    """An invented name of two or three syllables."""
    inner = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_INNER) for _ in range(1 + (rng.random() < 0.3))]
    return "".join(inner) + rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ENDS)


def zipf(rng: Random, items: list[Any]) -> Any:
    """One of the items, the k-th with weight 1 / (k + 1)."""
    return rng.choices(items, cum_weights=_harmonic(len(items)))[0]


@lru_cache
def _harmonic(n: int) -> list[int]:
    return list(accumulate(10**6 // (k + 1) for k in range(n)))


def code(rng: Random) -> str:
    """A model code, for example KR-2045."""
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVXZ") for _ in range(1 + rng.randrange(3)))
    return letters + rng.choice(("-", "")) + str(rng.randrange(10, 9999))


def measure(rng: Random) -> str:
    """A size of anything, for example 12 inch."""
    return f"{rng.randrange(1, 40)} {rng.choice(('inch', 'cm', 'oz', 'pcs', 'lbs', 'mm'))}"


def typo(rng: Random, word: str) -> str:
    """Two neighbours swapped, a letter lost or a letter doubled."""
    at = rng.randrange(len(word))
    swapped = word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
    return rng.choice((swapped, word[:at] + word[at + 1 :] or word, word[: at + 1] + word[at:]))
