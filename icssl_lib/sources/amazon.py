"""The Amazon review data's products, in the syntax of each vintage, with pictures that ``icssl_lib.fetch`` fetched.

=======  ==============================  =================================================================
vintage  a line is                       fields that are read
=======  ==============================  =================================================================
2014     a Python dict literal           asin, title, categories (list of paths), imUrl
2018     JSON                            asin, title, category (one path), imageURLHighRes, imageURL, image
2023     JSON                            parent_asin, title, categories (one path), images (list of objects)
=======  ==============================  =================================================================

A product's label is the leaf of its category path. Of several paths (2014) it is the deepest, the first among equally
deep ones: the deepest says most about the product, and the rule reads nothing but the product's own line, so a label
stays when other products come or go. Leaves of one name under different parents are one class.
"""

import ast
import gzip
import hashlib
import html
import json
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import pandas as pd

from icssl_lib.catalogue import CatalogueError, RawCatalogue, Report
from icssl_lib.config import AmazonSource
from icssl_lib.images import ImageError, read_bytes

MAX_LINE = 2**20  # bytes; a literal of that size takes some 100 MB to parse
PICTURES = "pictures"  # below the source's folder, each picture at ab/cdef..., by the hash of what it is
LOG = "pictures.jsonl"  # what became of each picture; see icssl_lib.fetch

# The same picture under an older name of the picture server
_MOVED = re.compile(r"[a-z0-9-]+\.(?:ssl-)?images-amazon\.com|(?:g-)?images\.amazon\.com|m\.media-amazon\.com")
NO_PICTURE = re.compile(r"no-img|no-image|no_image|transparent-pixel|grey-pixel", re.IGNORECASE)
# Page source that was taken for a title: begins with a tag, or holds script ("multi function (black)" is a title)
_PAGE_SOURCE = re.compile(r"^\s*</?[A-Za-z!]|\bgetTime\(|\baPageStart\b|\bue_t0\b|\bfunction\s*\([^)]*\)\s*\{")


class Product(NamedTuple):
    """One product; ``url`` is the address of its largest picture, '' where it has none."""

    id: str
    title: str
    label: str
    url: str


def load(name: str, source: AmazonSource) -> RawCatalogue:
    """Read the metadata; image is the picture's path below ``source.folder``, '' for a product without one.

    Raises:
        CatalogueError: the metadata or its pictures are not fetched, or the file is broken or of another vintage.
    """
    report, columns = Report(), ([], [], [], [])
    for product in read_products(name, source, report):
        for column, value in zip(columns, (*product[:3], product.url and picture_path(product.url)), strict=True):
            column.append(value)
    if not (source.folder / LOG).is_file() and any(columns[3]):
        raise CatalogueError(
            f"dataset {name}: {source.folder}: no pictures are fetched; run `python -m icssl_lib.runs fetch CONFIG`"
        )
    statuses = read_log(source.folder)

    def read_image(path: str) -> bytes:
        if not path:
            raise ImageError("missing", "the product names none")
        if (status := statuses.get(path, "not fetched")) != "ok":
            raise ImageError(status if status in ("corrupt", "too large") else "missing", status)
        return read_bytes(source.folder / path)

    table = pd.DataFrame(dict(zip(("id", "title", "label", "image"), columns, strict=True)), dtype=object)
    return RawCatalogue(table, read_image, report)


def meta_path(source: AmazonSource) -> Path:
    """Where the metadata file lies, fetched or not; the name of a fetched one comes from its address, made harmless."""
    if not source.remote:
        return Path(source.meta)
    base = re.sub(r"[^A-Za-z0-9._-]", "_", unquote(urlsplit(source.meta).path).rsplit("/", 1)[-1]).lstrip(".-")
    return source.folder / f"{source.vintage}-{base or 'meta'}"


def read_products(name: str, source: AmazonSource, report: Report) -> Iterator[Product]:
    """The usable products, one line in memory at a time; those without id, title, label or (where missing pictures
    are dropped) a picture's address are counted in ``report``.

    Raises:
        CatalogueError: see ``load``.
    """
    path = meta_path(source)
    where = f"dataset {name}: {path}"
    if not path.is_file():
        remedy = "run `python -m icssl_lib.runs fetch CONFIG` first" if source.remote else "set `meta` to where it lies"
        raise CatalogueError(f"{where}: no such metadata file; {remedy}")
    parse: Callable[[str], Any] = ast.literal_eval if source.vintage == 2014 else json.loads
    number = read = parsed = usable = 0
    try:
        with _open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in a literal; the compiler tells, line by line
            for number, line in enumerate(_lines(file), 1):
                if line is None:
                    report.add(f"line of more than {MAX_LINE} bytes", "dropped", 1, f"line {number}")
                    continue
                text = line.decode("utf-8", "replace").strip()
                if not text:
                    continue
                read += 1
                try:
                    record = parse(text)
                except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last: nested too deep
                    record = None
                if not isinstance(record, dict):
                    report.add(f"line not in the syntax of {source.vintage}", "dropped", 1, f"line {number}: {text}")
                    if not parsed and read == 1000:
                        break
                    continue
                parsed += 1
                product = _product(record, source)
                if isinstance(product, Product):
                    usable += 1
                    yield product
                else:
                    report.add(product, "dropped", 1, f"line {number}: {text}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        again = (
            "delete it and run `python -m icssl_lib.runs fetch CONFIG` again"
            if source.remote
            else "fetch it again, or give its address as `meta`, which resumes by itself"
        )
        raise CatalogueError(
            f"{where}: the gzip file breaks off or is damaged after line {number} ({error}); a part of it is another "
            f"catalogue, so nothing of it is used: {again}"
        ) from None
    except OSError as error:
        raise CatalogueError(f"{where}: cannot be read: {error.strerror or error}") from None
    if not usable:
        raise CatalogueError(
            f"{where}: none of the {read} lines read is a usable product in the syntax of {source.vintage}; is "
            f"`vintage` right, and is this a metadata file? ({report})"
        )


def _open(path: Path) -> BinaryIO:
    """Compressed or not, whatever its name says: browsers unpack what they download and leave the name."""
    with path.open("rb") as file:
        magic = file.read(2)
    return gzip.open(path, "rb") if magic == b"\x1f\x8b" else path.open("rb")


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines; None stands for one above MAX_LINE, which is skipped without being held."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        yield None


def _product(record: dict[str, Any], source: AmazonSource) -> Product | str:
    """The product of one record, or why it is dropped."""
    key = _text(record.get("parent_asin" if source.vintage == 2023 else "asin")).strip()
    title = html.unescape(_text(record.get("title")))
    if not key:
        return "no asin"
    if _PAGE_SOURCE.search(title):
        return "page source in place of a title"
    if not title.strip():
        return "no title"
    label = _leaf(record.get("category" if source.vintage == 2018 else "categories"))
    if not label:
        return "no category"
    url = _image_url(record, source.vintage)
    if source.missing_image == "drop" and not url:
        return "no picture named"
    if url and NO_PICTURE.search(urlsplit_path(url)):
        if source.missing_image == "drop":
            return "placeholder in place of a picture"
        url = ""
    return Product(key, title, sys.intern(label), url)


def _leaf(categories: Any) -> str:
    """The label by the rule above; '' without one. Markup, which some paths of 2018 end in, is no part of a path."""
    paths = categories if isinstance(categories, list) else []
    if not any(isinstance(path, list) for path in paths):
        paths = [paths]
    texts = [[_text(part).strip() for part in path] for path in paths if isinstance(path, list)]
    texts = [[html.unescape(part) for part in path if part and not part.startswith("<")] for path in texts]
    deepest = max(texts, key=len, default=[])  # the first of equals
    return " ".join(deepest[-1].split()) if deepest else ""


def _image_url(record: dict[str, Any], vintage: int) -> str:
    """The largest picture that the record names, by the address that serves it today, or ''."""
    if vintage == 2014:
        candidates = [record.get("imUrl")]
    elif vintage == 2018:
        fields = (record.get(field) for field in ("imageURLHighRes", "imageURL", "image"))
        candidates = [url for field in fields for url in (field if isinstance(field, list) else [field])]
    else:
        images = record.get("images")
        images = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
        images.sort(key=lambda image: image.get("variant") != "MAIN")  # stable: the first otherwise
        candidates = [image.get(size) for image in images for size in ("hi_res", "large", "thumb")]
    return next((canonical_url(url.strip()) for url in candidates if isinstance(url, str) and url.strip()), "")


def canonical_url(url: str) -> str:
    """One address for one picture, at full size.

    Old picture servers become m.media-amazon.com, ``%2B`` and ``+`` the same, and the resizing instructions between
    ``._`` and the suffix (``._SX300_``, ``._SR38,50_``) go. An address that is none comes back as it is.
    """
    try:
        parts = urlsplit(html.unescape(url))
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return url
    if parts.scheme not in ("http", "https") or not host:
        return url
    folder, _, file = unquote(parts.path, errors="replace").encode("utf-8", "replace").decode().rpartition("/")
    stem, instructions, rest = file.partition("._")
    if instructions:
        file = stem + "." + rest.rpartition(".")[2]
    if _MOVED.fullmatch(host):
        return f"https://m.media-amazon.com{quote(f'{folder}/{file}', safe=_SAFE)}"
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{quote(f'{folder}/{file}', safe=_SAFE)}"


_SAFE = "/+,;=@!$&'()*:~-._"


def urlsplit_path(url: str) -> str:
    """The path of an address, or all of one that cannot be split."""
    try:
        return urlsplit(url).path
    except ValueError:
        return url


def picture_path(url: str) -> str:
    """Where the picture of a canonical address lies below the folder; 256 subfolders, no part of the address in it."""
    name = hashlib.sha256((url.partition("://")[2] or url).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return f"{PICTURES}/{name[:2]}/{name[2:]}"


def read_log(folder: Path) -> dict[str, str]:
    """The last status of each picture path in the log; {} without a log. A last line that a kill tore is no entry."""
    statuses = {}
    if (folder / LOG).is_file():
        with (folder / LOG).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    statuses[entry["path"]] = sys.intern(entry["status"])
                except (ValueError, KeyError, TypeError):
                    continue
    return statuses


def _text(value: Any) -> str:
    """Texts as they are, '' for all else."""
    return value if isinstance(value, str) else ""
