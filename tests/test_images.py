import contextlib
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from icssl_lib import images
from icssl_lib.images import ImageError, ImageStore, decode, write_store

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def solid(mode: str, colour: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new(mode, size, colour)


def blank_png(side: int) -> bytes:
    """A valid 1-bit PNG of side x side, compressed row by row: no picture of that size is ever in memory."""
    row, packer, body = b"\0" * (1 + (side + 7) // 8), zlib.compressobj(9), []
    for start in range(0, side, 1000):
        body.append(packer.compress(row * min(1000, side - start)))
    body.append(packer.flush())

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", b"".join(body)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette_with_hole() -> Image.Image:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 20, 40, 40))
    return image


def near(pixels: np.ndarray, colour: tuple[int, int, int], slack: int = 4) -> bool:
    return bool((np.abs(pixels.astype(int) - colour) <= slack).all())


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encode(solid("RGB", RED)), RED),
        (encode(solid("RGB", RED), "JPEG"), (254, 0, 0)),
        (encode(solid("RGB", RED), "WEBP", lossless=True), RED),
        (encode(solid("RGB", RED), "BMP"), RED),
        (encode(solid("RGB", RED), "TIFF"), RED),
        (encode(solid("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
        (encode(solid("L", 100)), (100, 100, 100)),
        (encode(solid("1", 1)), WHITE),
        (encode(solid("I;16", 0x8000)), (128, 128, 128)),
        (encode(solid("RGBA", (255, 0, 0, 255))), RED),
        (encode(solid("RGBA", (255, 0, 0, 0))), WHITE),
        (encode(solid("RGBA", (255, 0, 0, 128))), (255, 127, 127)),
        (encode(solid("LA", (0, 0))), WHITE),
        (encode(solid("RGB", RED), transparency=RED), WHITE),
        (encode(solid("RGB", RED), "GIF", save_all=True, append_images=[solid("RGB", BLUE)]), RED),
    ],
    ids=[
        "png",
        "jpeg",
        "webp",
        "bmp",
        "tiff",
        "cmyk",
        "grey",
        "bit",
        "grey16",
        "opaque",
        "transparent",
        "half",
        "grey-alpha",
        "key",
        "animated",
    ],
)
def test_every_kind_of_picture_becomes_rgb(data, colour):
    pixels = decode(data, 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert near(pixels, colour)


def test_palette_and_its_transparent_colour():
    pixels = decode(encode(palette_with_hole()), 40)
    assert near(pixels[:18], RED)
    assert near(pixels[22:], BLUE)
    pixels = decode(encode(palette_with_hole(), transparency=0), 40)
    assert near(pixels[:18], WHITE)
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
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.array_equal(decode(Image.fromarray(noise), 32), noise)


@pytest.mark.parametrize("side", [9_000, 30_000])  # below and above where Pillow itself objects
def test_a_huge_picture_is_refused_by_its_header(side, monkeypatch):
    data = blank_png(side)
    assert len(data) < 200_000

    def load(image):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError) as caught:
        decode(data, 32)
    assert caught.value.reason == "too large"


def test_limits(monkeypatch, tmp_path):
    data = encode(solid("RGB", RED, (100, 100)))
    monkeypatch.setattr(images, "MAX_PIXELS", 100 * 100)
    assert decode(data, 8).shape == (8, 8, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 100 * 100 - 1)
    with pytest.raises(ImageError, match=r"too large: 100 x 100 pixels, the limit is 9999"):
        decode(data, 8)
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    (tmp_path / "a.png").write_bytes(data)
    for picture in (data, tmp_path / "a.png"):
        with pytest.raises(ImageError, match=f"too large: .*{len(data)} bytes"):
            decode(picture, 8)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encode(Image.fromarray(NOISE), "JPEG")[:1500],
        encode(Image.fromarray(NOISE))[:3000],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<html>not found</html>",
    ],
    ids=["empty", "text", "jpeg", "png", "eps", "html"],
)
def test_broken_pictures(data):
    with pytest.raises(ImageError) as caught:
        decode(data, 32)
    assert caught.value.reason == "corrupt"


def test_missing_files(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(ImageError) as caught:
            decode(path, 32)
        assert caught.value.reason == "missing"


def stored(path, n=5, size=8, fail=(), interrupt=None, seen=None, **options):
    """A store of n plain pictures; ``seen`` gathers what was read, ``interrupt`` is the picture that is never read."""

    def read(i):
        if i == interrupt:
            raise KeyboardInterrupt
        if seen is not None:
            seen.append(i)
        if i in fail:
            raise ImageError("corrupt", f"number {i}")
        return solid("RGB", (i, 0, 0))

    return write_store(path, range(n), read, size, progress=False, **options)


def said(rows, errors):
    return rows.tolist(), {i: (error.reason, str(error)) for i, error in errors.items()}


def test_store_holds_each_picture_in_order_without_the_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 4)  # several chunks
    rows, errors = stored(tmp_path / "images.npy", n=11, fail=(0, 4, 10))
    assert rows.tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, 6, 7, -1]
    assert {i: error.reason for i, error in errors.items()} == dict.fromkeys((0, 4, 10), "corrupt")
    store = ImageStore(tmp_path / "images.npy")
    assert (len(store), store.size) == (8, 8)
    batch = store[[7, 0, 0]]
    assert batch.shape == (3, 8, 8, 3)
    assert batch[:, 0, 0, 0].tolist() == [9, 1, 1]
    batch[:] = 0  # a copy
    assert store[[7]][0, 0, 0, 0] == 9
    plain = np.load(tmp_path / "images.npy")  # any NumPy reads it
    assert plain.shape == (8, 8, 8, 3)
    assert sorted(os.listdir(tmp_path)) == ["images.npy", "images.npy.journal"]


def test_store_refuses_rows_that_are_no_pictures(tmp_path):
    stored(tmp_path / "images.npy")
    store = ImageStore(tmp_path / "images.npy")
    with pytest.raises(IndexError, match="without a picture"):
        store[[0, -1]]
    with pytest.raises(IndexError):
        store[[5]]


def test_store_travels_to_another_process_by_name(tmp_path):
    stored(tmp_path / "images.npy", n=50, size=32)
    sent = pickle.dumps(ImageStore(tmp_path / "images.npy"))
    assert len(sent) < 1000
    assert len(pickle.loads(sent)) == 50  # noqa: S301


def test_store_that_is_not_whole(tmp_path):
    path = tmp_path / "images.npy"
    stored(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="mmap length"):
        ImageStore(path)
    np.save(path, np.zeros((2, 3, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="expected"):
        ImageStore(path)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"Python objects|allow_pickle"):
        ImageStore(path)


# --- going on after a kill; chunks of 4, of 11 pictures 0, 4 and 10 fail

BROKEN = (0, 4, 10)


@pytest.fixture
def undisturbed(tmp_path, monkeypatch):
    """The store's bytes, and its rows and errors."""
    monkeypatch.setattr(images, "CHUNK", 4)
    (tmp_path / "undisturbed").mkdir()
    result = stored(tmp_path / "undisturbed" / "images.npy", n=11, fail=BROKEN)
    return (tmp_path / "undisturbed" / "images.npy").read_bytes(), said(*result)


@pytest.mark.parametrize("at", range(11))
def test_an_interrupted_store_goes_on_after_its_last_whole_chunk(at, tmp_path, undisturbed):
    path, seen = tmp_path / "images.npy", []
    with pytest.raises(KeyboardInterrupt):
        stored(path, n=11, fail=BROKEN, interrupt=at)
    assert not path.exists()
    result = stored(path, n=11, fail=BROKEN, seen=seen)
    assert (path.read_bytes(), said(*result)) == undisturbed
    done = at // 4 * 4
    assert sorted(seen) == [i for i in BROKEN if i < done] + list(range(done, 11))  # what failed is tried again
    seen.clear()
    assert said(*stored(path, n=11, fail=BROKEN, seen=seen)) == undisturbed[1]  # its result was not stored yet
    assert sorted(seen) == list(BROKEN)
    assert path.read_bytes() == undisturbed[0]


CHILD = """
import sys, time
from pathlib import Path
from PIL import Image
from icssl_lib import images

def read(i):
    time.sleep(0.02)
    if i in (0, 4, 10):
        raise images.ImageError("corrupt", f"number {i}")
    return Image.new("RGB", (40, 40), (i, 0, 0))

images.CHUNK, images.all_cores = 4, lambda: 1
images.write_store(Path(sys.argv[1]), range(11), read, 8, progress=False)
"""


def test_kill_9_in_the_midst_of_it(tmp_path, undisturbed):
    path = tmp_path / "images.npy"
    for chunks in (0, 1, 2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, path])
        journal, until = path.with_name("images.npy.journal"), time.monotonic() + 30
        while (not journal.exists() or len(journal.read_bytes().splitlines()) <= chunks) and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(0.01)  # into the next chunk
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert not path.exists()
    seen = []
    result = stored(path, n=11, fail=BROKEN, seen=seen)
    assert (path.read_bytes(), said(*result)) == undisturbed
    assert 1 not in seen  # the first chunk was kept


def test_what_a_power_cut_tore_is_made_anew(tmp_path, undisturbed):
    path, journal, partial = (tmp_path / f"images.npy{suffix}" for suffix in ("", ".journal", ".partial"))
    with pytest.raises(KeyboardInterrupt):
        stored(path, n=11, fail=BROKEN, interrupt=9)
    log, pixels = journal.read_bytes(), partial.read_bytes()
    torn_logs = [log[:cut] for cut in range(0, len(log), 9)] + [log[:-9] + b"\0" * 9, log + b"\0" * 9, b"\xff" + log]
    torn_stores = [pixels[:cut] for cut in range(0, len(pixels), 150)] + [pixels + b"more"]
    for torn in [(torn, pixels) for torn in torn_logs] + [(log, torn) for torn in torn_stores]:
        path.unlink(missing_ok=True)
        journal.write_bytes(torn[0])
        partial.write_bytes(torn[1])
        assert said(*stored(path, n=11, fail=BROKEN)) == undisturbed[1]
        assert path.read_bytes() == undisturbed[0]


@pytest.mark.parametrize("change", [{"n": 12}, {"n": 3}, {"size": 9}, {"source": "another folder"}, {}], ids=str)
def test_another_store_starts_over(change, tmp_path, undisturbed, monkeypatch):
    path, seen = tmp_path / "images.npy", []
    with pytest.raises(KeyboardInterrupt):
        stored(path, n=11, fail=BROKEN, interrupt=9)
    if not change:
        monkeypatch.setattr(images.PIL, "__version__", "another")
    result = stored(path, **{"n": 11, "fail": BROKEN, "seen": seen, **change})
    assert sorted(seen) == list(range(change.get("n", 11)))
    (tmp_path / "fresh").mkdir()
    fresh = stored(tmp_path / "fresh" / "images.npy", **{"n": 11, "fail": BROKEN, **change})
    assert said(*result) == said(*fresh)
    assert path.read_bytes() == (tmp_path / "fresh" / "images.npy").read_bytes()


def test_a_picture_that_came_in_the_meantime_is_taken(tmp_path, undisturbed):
    path, seen = tmp_path / "images.npy", []
    with pytest.raises(KeyboardInterrupt):
        stored(path, n=11, fail=(0, 4, 6, 10), interrupt=9)
    result = stored(path, n=11, fail=BROKEN, seen=seen)
    assert (path.read_bytes(), said(*result)) == undisturbed
    assert 1 not in seen  # of a chunk in which all is as it was
    assert 5 in seen


# --- a whole store of before, which a notebook may have open


def test_an_open_store_keeps_its_pixels_when_another_takes_its_place(tmp_path, undisturbed):
    path = tmp_path / "images.npy"
    stored(path, n=11, fail=BROKEN)
    opened, inode = ImageStore(path), path.stat().st_ino
    before = opened[range(8)]
    stored(path, n=11, fail=BROKEN)
    assert path.stat().st_ino == inode  # the same call has nothing to write
    for change in ({"n": 3}, {"n": 11, "size": 9}, {"n": 20}, {"n": 20, "fail": (2,)}, {"n": 11, "fail": BROKEN}):
        rows, _ = stored(path, **change)
        assert np.array_equal(opened[range(8)], before)
        assert ImageStore(path)[rows[rows >= 0]][:, 4, 4, 0].tolist() == np.flatnonzero(rows >= 0).tolist()
    assert path.read_bytes() == undisturbed[0]
    assert sorted(os.listdir(tmp_path)) == ["images.npy", "images.npy.journal", "undisturbed"]


def test_an_open_store_keeps_its_pixels_when_a_picture_came_in_the_meantime(tmp_path, undisturbed):
    path, seen = tmp_path / "images.npy", []
    stored(path, n=11, fail=(0, 4, 6, 10))
    opened = ImageStore(path)
    before = opened[range(7)]
    result = stored(path, n=11, fail=BROKEN, seen=seen)
    assert np.array_equal(opened[range(7)], before)
    assert (path.read_bytes(), said(*result)) == undisturbed
    assert 1 not in seen  # the first chunk was copied


def test_what_is_torn_of_a_whole_store_is_made_anew(tmp_path, undisturbed):
    path, journal = tmp_path / "images.npy", tmp_path / "images.npy.journal"
    stored(path, n=11, fail=BROKEN)
    log, pixels = journal.read_bytes(), path.read_bytes()
    torn_logs = [log[:cut] for cut in range(0, len(log), 9)]
    torn_stores = [*(pixels[:cut] for cut in range(0, len(pixels), 150)), pixels + b"more", bytes(128) + pixels[128:]]
    for torn in [(torn, pixels) for torn in torn_logs] + [(log, torn) for torn in torn_stores]:
        journal.write_bytes(torn[0])
        path.write_bytes(torn[1])
        assert said(*stored(path, n=11, fail=BROKEN)) == undisturbed[1]
        assert path.read_bytes() == undisturbed[0]


@pytest.mark.parametrize("at", range(1, 7))  # in the copy, two or three chunks, the header, or after all of it
@pytest.mark.parametrize("change", [{"fail": (0, 4, 6, 10)}, {"size": 9}], ids=str)
def test_a_kill_while_a_whole_store_is_replaced(change, at, tmp_path, undisturbed, monkeypatch):
    path, seen, synced = tmp_path / "images.npy", [], []
    stored(path, **{"n": 11, "fail": BROKEN} | change)
    whole, opened = path.read_bytes(), ImageStore(path)
    before = opened[range(7)]

    def die(handle):
        synced.append(handle)
        if len(synced) == at:
            os.truncate(handle, os.fstat(handle).st_size // 2)  # what is not on the disk yet
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with contextlib.suppress(KeyboardInterrupt):
            stored(path, n=11, fail=BROKEN)
    if at == 1:
        assert path.read_bytes() == whole
    result = stored(path, n=11, fail=BROKEN, seen=seen)
    assert (path.read_bytes(), said(*result)) == undisturbed
    assert np.array_equal(opened[range(7)], before)
    if at == 1 and "fail" in change:
        assert 1 not in seen  # the first chunk was in the old store still
    if len(synced) < at:
        assert sorted(seen) == list(BROKEN)


def test_a_folder_is_replaced_at_once_or_stays(tmp_path, monkeypatch):
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "folder")
    for path in (tmp_path / "folder", tmp_path / "link"):
        for text in ("one", "two"):
            with images.folder_written_whole(path) as part:
                (part / text).touch()
            assert os.listdir(path) == [text]

        def die(source, target, replace=os.replace):
            if ".part" in source.name:
                raise KeyboardInterrupt  # the old one is out of the way already
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            with pytest.raises(KeyboardInterrupt), images.folder_written_whole(path) as part:
                (part / "three").touch()
        assert os.listdir(path) == ["two"]
    assert sorted(os.listdir(tmp_path)) == ["far", "folder", "link"]
    assert os.listdir(tmp_path / "far") == ["folder"]


def test_memory_holds_two_chunks_and_no_failed_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 16)
    monkeypatch.setattr(os, "fsync", lambda file: time.sleep(0.02))  # a slow disk: decoding is ahead of it
    chunk = 16 * 128 * 128 * 3

    def read(i):  # every other one is a page of 100 kB instead of a picture
        return b"<html>" + bytes(100_000) if i % 2 else solid("RGB", RED)

    tracemalloc.start()
    _, errors = write_store(tmp_path / "images.npy", range(600), read, 128, progress=False)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(errors) == 300
    assert peak < 2 * chunk + 5e6  # all pictures decoded: 15 MB; all the pages: 30 MB
    assert held < 1e6
