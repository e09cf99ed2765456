import io
import os
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from toys import encode, huge_png

from icssl_lib import images
from icssl_lib.images import ImageError, decode, read_bytes, write_store

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def solid(mode: str, colour: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new(mode, size, colour)


def palette_with_hole() -> Image.Image:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 20, 40, 40))
    return image


def near(pixels: np.ndarray, colour: tuple[int, int, int], slack: int = 4) -> bool:
    return bool((np.abs(pixels.astype(int) - colour) <= slack).all())


KINDS = {
    "png": (encode(solid("RGB", RED)), RED),
    "jpeg": (encode(solid("RGB", RED), "JPEG"), (254, 0, 0)),
    "webp": (encode(solid("RGB", RED), "WEBP", lossless=True), RED),
    "bmp": (encode(solid("RGB", RED), "BMP"), RED),
    "tiff": (encode(solid("RGB", RED), "TIFF"), RED),
    "cmyk": (encode(solid("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
    "grey": (encode(solid("L", 100)), (100, 100, 100)),
    "bit": (encode(solid("1", 1)), WHITE),
    "grey16": (encode(solid("I;16", 0x8000)), (128, 128, 128)),
    "opaque": (encode(solid("RGBA", (255, 0, 0, 255))), RED),
    "transparent": (encode(solid("RGBA", (255, 0, 0, 0))), WHITE),
    "half": (encode(solid("RGBA", (255, 0, 0, 128))), (255, 127, 127)),
    "grey-alpha": (encode(solid("LA", (0, 0))), WHITE),
    "key": (encode(solid("RGB", RED), transparency=RED), WHITE),
    "animated": (encode(solid("RGB", RED), "GIF", save_all=True, append_images=[solid("RGB", BLUE)]), RED),
}
BROKEN = {"jpeg": encode(Image.fromarray(NOISE), "JPEG")[:1500], "png": encode(Image.fromarray(NOISE))[:3000]}


@pytest.mark.parametrize(("data", "colour"), KINDS.values(), ids=KINDS)
def test_every_kind_of_picture_becomes_rgb(data, colour):
    pixels = decode(data, 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert near(pixels, colour)


@pytest.mark.parametrize(("options", "colour"), [({}, RED), ({"transparency": 0}, WHITE)])
def test_palette_and_its_transparent_colour(options, colour):
    pixels = decode(encode(palette_with_hole(), **options), 40)
    assert near(pixels[:18], colour)
    assert near(pixels[22:], BLUE)


@pytest.mark.parametrize("side", [40, 400])
def test_whole_picture_fits_with_white_around(side):
    wide = decode(encode(solid("RGB", RED, (side, side // 2))), 100)
    assert near(wide[26:74], RED)
    assert near(wide[:24], WHITE)
    assert near(wide[76:], WHITE)
    tall = decode(encode(solid("RGB", RED, (side // 2, side))), 100)
    assert np.array_equal(tall, wide.transpose(1, 0, 2))
    assert near(decode(encode(solid("RGB", BLUE, (5000, 1))), 32)[15], BLUE)  # not rounded away


def test_exif_rotation_is_applied():
    image = solid("RGB", RED, (40, 20))
    image.paste(BLUE, (20, 0, 40, 20))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: red on top, blue below
    pixels = decode(encode(image, "JPEG", quality=95, subsampling=0, exif=exif), 40)
    assert near(pixels[2:16, 14:26], RED, 12)
    assert near(pixels[24:38, 14:26], BLUE, 12)
    assert near(pixels[:, :8], WHITE, 12)


def test_downsampling_averages_instead_of_skipping():
    lines = np.zeros((512, 512), np.uint8)
    lines[:, ::2] = 255
    assert near(decode(encode(Image.fromarray(lines)), 64), (127, 127, 127), 6)


def test_draft_decoding_of_a_jpeg_equals_the_full_one():
    y, x = np.mgrid[:1200, :1600] / 100
    smooth = np.stack([np.sin(x) * 100 + 128, np.sin(y) * 100 + 128, np.cos(x + y) * 100 + 128], -1)
    data = encode(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).resize((128, 96), Image.Resampling.LANCZOS)
    difference = np.abs(decode(data, 128)[16:112].astype(int) - np.asarray(full))
    assert difference.mean() < 1.5


def test_a_picture_of_the_right_size_is_unchanged():
    assert np.array_equal(decode(Image.fromarray(NOISE), 64), NOISE)


@pytest.mark.parametrize("side", [9_000, 30_000])  # below and above where Pillow itself objects
def test_a_huge_picture_is_refused_by_its_header(side, monkeypatch):
    def load(image):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError) as caught:
        decode(huge_png(side), 32)
    assert caught.value.reason == "too large"


def test_limits(monkeypatch, tmp_path):
    data = encode(solid("RGB", RED, (100, 100)))
    monkeypatch.setattr(images, "MAX_PIXELS", 100 * 100)
    assert decode(data, 8).shape == (8, 8, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 100 * 100 - 1)
    with pytest.raises(ImageError, match=r"too large: 100 x 100 pixels, the limit is 9999"):
        decode(data, 8)
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 2)
    (tmp_path / "a.png").write_bytes(data)
    assert read_bytes(tmp_path / "a.png") == data[:-1]  # no more of a huge file is read
    for encoded in (data, read_bytes(tmp_path / "a.png")):
        with pytest.raises(ImageError, match=f"too large: more than {len(data) - 2} bytes"):
            decode(encoded, 8)


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_pictures(data):
    with pytest.raises(ImageError) as caught:
        decode(data, 32)
    assert caught.value.reason == "corrupt"


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    right = zlib.crc32(kind + data)
    return len(data).to_bytes(4) + kind + data + (right if crc is None else crc).to_bytes(4)


@pytest.mark.parametrize("beside", [
    *(chunk(kind, b"C\0\0x", crc=1) for kind in (b"tEXt", b"eXIf", b"zTXt", b"tIME", b"iCCP", b"gAMA")),
    chunk(b"zTXt", b"C\0\x07x"), chunk(b"iCCP", b""), chunk(b"iCCP", b"p\0\x05"), chunk(b"pHYs", b"\0"),
])  # fmt: skip
def test_what_lies_beside_the_pixels_of_a_png_loses_no_picture(beside):
    data = encode(solid("RGB", RED))
    assert near(decode(data[:33] + beside + data[33:], 8), RED)  # behind the header


def test_a_colour_profile_of_nothing_loses_no_jpeg():
    data = encode(solid("RGB", RED), "JPEG")
    assert near(decode(data[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + data[2:], 8), RED, 12)


def test_grey_of_any_range_is_read():
    ramp = np.linspace(-3, 5, 64 * 64).reshape(64, 64)
    holed = np.where(ramp == 5, np.nan, ramp).astype(np.float32)
    for grey in (ramp.astype(np.float32), (ramp * 1e6).astype(np.int32), holed):
        pixels = decode(encode(Image.fromarray(grey), "TIFF"), 64)[..., 0].astype(float)
        assert abs(pixels - np.linspace(0, 255, 64 * 64).reshape(64, 64))[:-1].max() < 2


def test_what_would_take_seconds_or_a_gigabyte_is_refused_unseen():
    scans = encode(Image.fromarray(NOISE), "JPEG", progressive=True)
    scans = scans[:-2] + 60 * scans[scans.rindex(b"\xff\xda") : -2] + scans[-2:]
    for data, message in ((scans, r"\d+ scans, the limit is 50"), (encode(Image.new("1", (6000, 6000))), "to decode")):
        with pytest.raises(ImageError, match=f"too large: .*{message}"):
            decode(data, 8)
    assert near(decode(encode(solid("RGB", RED, (6000, 6000)), "JPEG"), 8), RED, 12)  # an eighth of it is decoded
    (closed := solid("RGB", RED)).close()
    with pytest.raises(ImageError, match="corrupt: Operation on closed image"):
        decode(closed, 8)


def test_missing_files(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(ImageError) as caught:
            read_bytes(path)
        assert caught.value.reason == "missing"


def stored(path, n=5, size=8, fail=(), interrupt=None):
    """A store of n plain pictures; ``interrupt`` is the picture that is never read."""

    def read(i):
        if i == interrupt:
            raise KeyboardInterrupt
        if i in fail:
            raise ImageError("corrupt", f"number {i}")
        return solid("RGB", (i, 0, 0))

    return write_store(path, range(n), read, size, progress=False)


def test_store_holds_each_picture_in_order_without_the_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 4)
    rows, errors = stored(tmp_path / "images.npy", n=11, fail=(0, 4, 10))
    assert rows.tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, 6, 7, -1]
    assert {i: (error.reason, str(error)) for i, error in errors.items()} == {
        i: ("corrupt", f"picture corrupt: number {i}") for i in (0, 4, 10)
    }
    store = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert (len(store), store.nbytes) == (8, 8 * 8 * 8 * 3)
    batch = store[[7, 0, 0]]
    assert batch.shape == (3, 8, 8, 3)
    assert batch[:, 0, 0, 0].tolist() == [9, 1, 1]
    batch[:] = 0  # a copy
    assert store[[7]][0, 0, 0, 0] == 9
    plain = np.load(tmp_path / "images.npy")  # any NumPy reads it
    assert plain.shape == (8, 8, 8, 3)
    np.save(tmp_path / "same.npy", plain)
    assert (tmp_path / "same.npy").read_bytes() == (tmp_path / "images.npy").read_bytes()


@pytest.mark.parametrize("at", [0, 5, 10])
def test_an_interrupted_store_is_not_there_and_is_made_anew(at, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 4)
    path = tmp_path / "images.npy"
    stored(path, n=11, fail=(4,))
    undisturbed = path.read_bytes()
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        stored(path, n=11, fail=(4,), interrupt=at)
    assert not os.listdir(tmp_path)
    path.with_name("images.npy.partial").write_bytes(undisturbed + b"more")  # of a process that was killed
    stored(path, n=11, fail=(4,))
    assert path.read_bytes() == undisturbed
    assert os.listdir(tmp_path) == ["images.npy"]


def test_an_open_store_keeps_its_pixels_when_another_takes_its_place(tmp_path):
    path = tmp_path / "images.npy"
    stored(path, n=11)
    opened = np.load(path, mmap_mode="r")
    before = opened[range(11)]
    for change in ({"n": 3}, {"n": 11, "size": 9}, {"n": 20, "fail": (2,)}):
        rows, _ = stored(path, **change)
        assert np.array_equal(opened[range(11)], before)
        assert np.load(path, mmap_mode="r")[rows[rows >= 0]][:, 4, 4, 0].tolist() == np.flatnonzero(rows >= 0).tolist()


def test_memory_holds_a_chunk_and_no_failed_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 16)

    def read(i):  # every other one is a page of 100 kB instead of a picture
        return b"<html>" + bytes(100_000) if i % 2 else solid("RGB", RED)

    tracemalloc.start()
    _, errors = write_store(tmp_path / "images.npy", range(600), read, 128, progress=False)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(errors) == 300
    assert peak < 16 * 128 * 128 * 3 + 5e6  # all pictures decoded: 15 MB; all the pages: 30 MB
    assert held < 1e6
