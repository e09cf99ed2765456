"""Decoding of pictures, any of which is taken for hostile, and a file that holds each one decoded once."""

import io
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from tqdm.auto import tqdm

from icssl_lib.files import written_whole

MAX_PIXELS = 64_000_000  # width x height of a picture before it is resized; more is refused unseen
MAX_DECODED = 32_000_000  # of these, where the decoder does not skip any, as a JPEG's does: up to 20 bytes a pixel
MAX_SCANS = 50  # of a progressive JPEG, each of which goes through the whole picture
MAX_BYTES = 64 * 2**20  # of an encoded picture
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # no EPS: Pillow would start Ghostscript for it
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_BYTES  # a long comment loses no picture
CHUNK = 256  # pictures that are in memory at a time while a store is written


class ImageError(ValueError):
    """A picture that cannot be used. reason: missing, corrupt, not recognised, too large or outside the folder."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(f"picture {reason}: {detail}")
        self.reason, self.detail = reason, str(detail)


def read_bytes(path: Path) -> bytes:
    """The bytes of an encoded picture, at most one more than `decode` takes. Raises: ImageError: it cannot be read."""
    try:
        if path.is_file():  # no folder, device or pipe
            with path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        raise ImageError("missing", path)
    except OSError as error:
        raise ImageError("missing", f"{path}: {error.strerror}") from None


def decode(picture: bytes | Image.Image, size: int) -> np.ndarray:
    """Fit a whole picture, encoded or open, into a white square: first frame, upright by EXIF, aspect kept, alpha on
    white. Returns: (size, size, 3) uint8, RGB.
    Raises: ImageError: too large (encoded, or in pixels by its header), or not decodable."""
    encoded = isinstance(picture, bytes)
    if encoded and len(picture) > MAX_BYTES:
        raise ImageError("too large", f"more than {MAX_BYTES} bytes")
    if encoded and picture[:2] == b"\xff\xd8" and (scans := picture.count(b"\xff\xda")) > MAX_SCANS:
        raise ImageError("too large", f"{scans} scans, the limit is {MAX_SCANS}")
    try:
        if not encoded:
            return _fit(picture, size)
        with Image.open(io.BytesIO(_bare(picture)), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError("too large", f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
            return _fit(image, size)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        begins = f"begins with {picture[:24]!r}" if picture else "an empty file"
        raise ImageError("not recognised", f"{begins}; supported: {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise nearly anything on a broken file
        bomb = isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        raise ImageError("too large" if bomb else "corrupt", error) from None


def _bare(picture: bytes) -> bytes:
    """A picture without parts whose faults would lose it: a PNG's chunks that pixels do without, a JPEG's ICC mark."""
    kept, at = [picture[:8]], 8
    while picture[:4] == b"\x89PNG" and at < len(picture) and picture[at + 4 : at + 8] != b"IDAT":
        end, kind = at + 12 + int.from_bytes(picture[at : at + 4]), picture[at + 4 : at + 8]
        exif = kind == b"eXIf" and zlib.crc32(picture[at + 4 : end - 4]) == int.from_bytes(picture[end - 4 : end])
        kept += [picture[at : (at := end)]] * (exif or kind in (b"IHDR", b"PLTE", b"tRNS"))
    return b"".join([*kept, picture[at:]]).replace(b"ICC_PROFILE\0", b"icc_profile\0")


def _fit(image: Image.Image, size: int) -> np.ndarray:
    scale = size / max(image.size)
    # JPEG: decode at 1/2, 1/4 or 1/8 where that still leaves twice the pixels that are needed
    image.draft(None, tuple(max(1, round(2 * scale * side)) for side in image.size))
    if image.width * image.height > MAX_DECODED:
        raise ImageError("too large", f"{image.width} x {image.height} pixels to decode, the limit is {MAX_DECODED}")
    with suppress(Exception):  # an orientation that cannot be read is none; broken pixels are found out below
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):  # of any range, which Pillow would clip
        grey = np.nan_to_num(np.array(image, np.float64), copy=False, posinf=0, neginf=0)
        grey -= grey.min()
        grey /= grey.max() / 255 or 1
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip rather than scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    target = tuple(max(1, round(size / max(image.size) * side)) for side in image.size)
    image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    square = Image.new("RGB", (size, size), "white")
    offset = ((size - target[0]) // 2, (size - target[1]) // 2)
    square.paste(image, offset, image if image.mode == "RGBA" else None)
    return np.asarray(square)


def write_store(
    path: Path, references: Sequence[Any], read: Callable[[Any], bytes | Image.Image], size: int, progress: bool = True
) -> tuple[np.ndarray, dict[int, ImageError]]:
    """Decode pictures by one thread per core (Pillow releases the GIL) into one .npy file, in order.

    ``path``, (rows, size, size, 3) uint8, appears whole or not at all; who has an earlier one open keeps its pixels.
    ``read`` is called from several threads and raises ImageError. size: side of the squares, in pixels.

    Returns: (N,) int64, the row of each reference in the file, -1 where it failed; each failure by its position."""

    def load(reference: Any) -> np.ndarray | ImageError:
        try:
            return decode(read(reference), size)
        except ImageError as error:
            return ImageError(error.reason, error.detail)  # anew: the traceback would hold the picture's bytes

    rows, errors = np.full(len(references), -1), {}
    header = {"descr": "|u1", "fortran_order": False, "shape": (0, size, size, 3)}
    chunks = tqdm(range(0, len(references), CHUNK), "pictures", unit=f" x {CHUNK}", disable=not progress)
    # Appended to rather than mapped: on a full disk a write raises OSError, where a mapped page would kill the process.
    with written_whole(path) as partial, partial.open("wb") as file, ThreadPoolExecutor(cpu_count()) as pool:
        np.lib.format.write_array_header_1_0(file, header)
        for start in chunks:
            for i, pixels in enumerate(pool.map(load, references[start : start + CHUNK]), start):
                if isinstance(pixels, ImageError):
                    errors[i] = pixels
                else:
                    rows[i] = i - len(errors)
                    file.write(pixels.tobytes())
        file.seek(0)  # NumPy pads the header, so that the count can grow in place
        header["shape"] = (len(references) - len(errors), size, size, 3)
        np.lib.format.write_array_header_1_0(file, header)
    return rows, errors
