"""Safe decoding of pictures, and a store that holds each picture decoded once.

Any image file is taken for hostile: only formats that Pillow decodes by itself, sizes checked on the header,
and whatever a decoder raises becomes an ImageError.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from PIL import Image, ImageOps
from tqdm.auto import tqdm

MAX_PIXELS = 64_000_000  # width x height of a picture before it is resized; more is refused unseen
MAX_BYTES = 64 * 2**20  # of an encoded picture
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "MPO",
)  # no EPS: Pillow would start Ghostscript for it
CHUNK = 256  # pictures decoded, written and journalled together

Reason = Literal["missing", "corrupt", "too large", "outside the folder"]


class ImageError(ValueError):
    """A picture that cannot be used; ``reason`` is one of four, the message adds the detail."""

    def __init__(self, reason: Reason, detail: object = "") -> None:
        super().__init__(f"picture {reason}: {detail}" if detail else f"picture {reason}")
        self.reason, self.detail = reason, str(detail)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name to write to, beside ``path``; it becomes ``path`` when the block ends without an error."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, beside ``folder``; it takes its place when the block ends without an error.

    Raises: OSError: it cannot be made or take that place; what was there stays.
    """
    folder = folder.resolve()  # of a link, what it leads to
    part, old = (folder.with_name(f"{folder.name}.{what}{os.getpid()}") for what in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)  # at once, where removing takes its time and may be killed halfway
        os.replace(part, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with this file; the lock falls with its process, however that
    ends. On Windows, which has no such locks, nobody waits."""
    with lock.open("w") as handle:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_bytes(path: Path) -> bytes:
    """The bytes of an encoded picture.

    Raises:
        ImageError: no such regular file, not readable, or above MAX_BYTES.
    """
    try:
        if not path.is_file():  # a folder, a device and a pipe too
            raise ImageError("missing", path)
        if path.stat().st_size > MAX_BYTES:
            raise ImageError("too large", f"{path}: {path.stat().st_size} bytes, the limit is {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ImageError("missing", f"{path}: {error.strerror}") from None


def decode(picture: bytes | Path | Image.Image, size: int) -> np.ndarray:
    """Fit a whole picture into a white square: first frame, upright by EXIF, aspect kept, alpha on white.

    Args:
        picture: encoded bytes, a file, or a picture already open.
        size: side of the square, in pixels.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        ImageError: missing, too large (encoded, or in pixels by its header), or not decodable.
    """
    if isinstance(picture, Path):
        picture = read_bytes(picture)
    if isinstance(picture, Image.Image):
        return _fit(picture, size)
    if len(picture) > MAX_BYTES:
        raise ImageError("too large", f"{len(picture)} bytes, the limit is {MAX_BYTES}")
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError("too large", f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
            return _fit(image, size)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too large", error) from None
    except Exception as error:  # decoders raise nearly anything on a broken file
        raise ImageError("corrupt", error) from None


def _fit(image: Image.Image, size: int) -> np.ndarray:
    scale = size / max(image.size)
    # JPEG: decode at 1/2, 1/4 or 1/8 where that still leaves twice the pixels that are needed
    image.draft(None, tuple(max(1, round(2 * scale * side)) for side in image.size))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip rather than scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    scale = size / max(image.size)
    target = tuple(max(1, round(scale * side)) for side in image.size)
    image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    square = Image.new("RGB", (size, size), "white")
    offset = ((size - target[0]) // 2, (size - target[1]) // 2)
    square.paste(image, offset, image if image.mode == "RGBA" else None)
    return np.asarray(square)


def write_store(
    path: Path,
    references: Sequence[Any],
    read: Callable[[Any], bytes | Path | Image.Image],
    size: int,
    progress: bool = True,
    source: str = "",
) -> tuple[np.ndarray, dict[int, ImageError]]:
    """Decode pictures by one thread per core (Pillow releases the GIL) into one .npy file, in order.

    Killed at any moment, the same call goes on after the last finished chunk and ends with the same bytes. Pixels go
    to ``<path>.partial``, which becomes ``path`` when it is whole; ``<path>.journal`` tells what is done. The journal
    stays, and with it the same call returns at once: delete it when the result is stored. A call with other
    references, size, source or code starts over, and where a picture that failed is sound now, from its chunk on.

    A whole file is not written to again: who has it open as an `ImageStore` keeps its pixels, and ``path`` is another
    file from then on. What is kept of it is copied, so that for a while the disk holds both.

    Memory is bounded by two chunks. The file is appended to rather than mapped: on a full disk a write raises
    OSError, where a mapped page would kill the process.

    Args:
        path: the .npy file; one of an earlier ingest is replaced, unless it is what this call would write.
        references: what ``read`` understands; two calls are the same if their repr are (bytes: if they are equal).
        read: called from several threads; raises ImageError.
        size: side of the stored squares, in pixels.
        source: what else tells two ``read`` apart, such as the folder that references are relative to.

    Returns:
        (N,) int64, the row of each reference in the file, -1 where it failed; each failure by its position.
    """
    partial, journal = (path.with_name(path.name + suffix) for suffix in (".partial", ".journal"))
    head = json.dumps({"store": fingerprint(references, size, source)}) + "\n"

    def load(reference: Any) -> np.ndarray | ImageError:
        try:
            return decode(read(reference), size)
        except ImageError as error:
            return ImageError(error.reason, error.detail)  # anew: the traceback would hold the picture's bytes

    def header(count: int) -> bytes:
        file, shape = io.BytesIO(), (count, size, size, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return file.getvalue()

    store = path if path.exists() else partial
    begin, picture = len(header(0)), 3 * size * size
    whole = (store.stat().st_size - begin) // picture if store.exists() else 0
    done, errors = _resume(journal, head, whole, lambda i: isinstance(load(references[i]), ImageError))
    kept = begin + picture * (done - len(errors))
    if path.exists():
        if done == len(references) and _is_whole(path, header(done - len(errors)), kept):
            return _rows(len(references), errors), errors
        _copy(path, partial, kept)  # killed meanwhile, the next call finds `path` as it was
        path.unlink()
    partial.touch()
    with partial.open("r+b") as file:
        file.write(header(0))
        file.seek(kept)
        file.truncate()
        with (
            journal.open("a") as log,
            ThreadPoolExecutor(all_cores()) as pool,
            tqdm(initial=done, total=len(references), desc="pictures", unit="", disable=not progress) as bar,
        ):
            chunks = (pool.map(load, references[i : i + CHUNK]) for i in range(done, len(references), CHUNK))
            for chunk, _ in pairwise(chain(chunks, [None])):  # the next is being decoded while one is written
                failed = {}
                for position, pixels in enumerate(chunk, done):
                    if isinstance(pixels, ImageError):
                        failed[position] = pixels
                    else:
                        file.write(pixels.tobytes())
                    bar.update()
                file.flush()
                os.fsync(file.fileno())  # before the journal says so, should the power fail
                done = min(done + CHUNK, len(references))
                errors.update(failed)
                log.write(_journal_line(done, failed))
                log.flush()
        file.seek(0)
        file.write(header(len(references) - len(errors)))  # NumPy pads it, so that the count can grow in place
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return _rows(len(references), errors), errors


def _rows(count: int, errors: dict[int, ImageError]) -> np.ndarray:
    sound = np.array([i not in errors for i in range(count)], dtype=bool)
    return np.where(sound, np.cumsum(sound) - 1, -1)


def _is_whole(path: Path, header: bytes, size: int) -> bool:
    with path.open("rb") as file:
        return file.read(len(header)) == header and path.stat().st_size == size


def _copy(source: Path, target: Path, size: int) -> None:
    """Copy the first ``size`` bytes, or all if they are fewer, and wait until the disk has them."""
    with source.open("rb") as old, target.open("wb") as new:
        while block := old.read(min(size, 2**20)):
            new.write(block)
            size -= len(block)
        new.flush()
        os.fsync(new.fileno())


def _journal_line(done: int, failed: dict[int, ImageError]) -> str:
    return json.dumps({"done": done, "failed": {i: (e.reason, e.detail) for i, e in failed.items()}}) + "\n"


def _resume(journal: Path, head: str, held: int, fails: Callable[[int], bool]) -> tuple[int, dict[int, ImageError]]:
    """How many references an earlier call is done with, and those that failed; the journal is cut to that.

    Args:
        head: the journal's first line; with another one nothing is done.
        held: whole pictures in the store that they went to.
        fails: whether the reference at a position fails still.
    """
    lines = journal.read_text(errors="replace").splitlines(keepends=True) if journal.exists() else []
    done, errors, kept = 0, {}, [head]
    for line in lines[1:] if lines[:1] == [head] else []:
        try:
            chunk = json.loads(line)
        except ValueError:  # torn
            break
        failed = {int(i): ImageError(*why) for i, why in chunk["failed"].items()}
        if chunk["done"] - len(errors) - len(failed) > held or not all(map(fails, failed)):
            break
        done = chunk["done"]
        errors.update(failed)
        kept.append(_journal_line(done, failed))
    with written_whole(journal) as whole:
        whole.write_text("".join(kept))
    return done, errors


def fingerprint(references: Sequence[Any], size: int, source: str) -> str:
    """A hash of all that the bytes of a store depend on (see `write_store`), and of the code that reads and decodes."""
    digest = hashlib.sha256(f"{PIL.__version__} {size} {source}".encode())
    folder = Path(__file__).parent
    for code in (Path(__file__), *sorted((folder / "sources").glob("*.py"))):
        digest.update(code.read_bytes())
    for reference in references:
        data = reference if isinstance(reference, bytes) else repr(reference).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def all_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ImageStore:
    """Decoded pictures on disk: ``store[rows]`` gives (n, S, S, 3) uint8, ``len(store)`` their number.

    Raises:
        OSError, ValueError: no such file, or not a whole store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        shape = self._pixels.shape
        if self._pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise ValueError(f"{self.path}: expected (N, S, S, 3) uint8, found {shape} {self._pixels.dtype}")

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return self._pixels.shape[1]

    @property
    def nbytes(self) -> int:
        """Of all pixels."""
        return self._pixels.nbytes

    def __len__(self) -> int:
        return self._pixels.shape[0]

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) rows to (n, S, S, 3) uint8, a copy.

        Raises:
            IndexError: a row outside 0..N-1; -1, a product without a picture, is no row.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if (rows < 0).any():
            raise IndexError("row -1 stands for a product without a picture; leave those products out")
        return self._pixels[rows]

    def __reduce__(self) -> tuple[type["ImageStore"], tuple[Path]]:
        return ImageStore, (self.path,)  # a worker process maps the file anew; the pixels are not copied to it
