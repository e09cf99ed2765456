"""The Amazon review data's products, in the syntax of each vintage, with pictures that ``fetch.py`` fetched."""

import ast
import gzip
import hashlib
import html
import json
import re
import sys
import zlib
from collections import namedtuple
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pandas as pd

from icssl_lib.config import AmazonSource
from icssl_lib.images import ImageError, read_bytes
from icssl_lib.sources.raw import CatalogueError, RawCatalogue, Report, unescaped

FIELDS = {  # beside the title: the identity, the category path (2014: a list of paths), pictures, larger ones first
    2014: ("asin", "categories", ["imUrl"]),
    2018: ("asin", "category", ["imageURLHighRes", "imageURL", "image"]),
    2023: ("parent_asin", "categories", ["images"]),
}
MAX_LINE = 2**19  # bytes; a literal of that size takes a second and 50 MB to parse
LOG = "pictures.jsonl"  # what became of each picture, in the source's folder; see fetch.py
_FETCH = "run `python -m icssl_lib.runs fetch CONFIG`"
# The same picture under an older name of the picture server
_MOVED = re.compile(r"[a-z0-9-]+\.(?:ssl-)?images-amazon\.com|(?:g-)?images\.amazon\.com|m\.media-amazon\.com")
NO_PICTURE = re.compile(r"no-img|no-image|no_image|transparent-pixel|grey-pixel", re.IGNORECASE)
# Page source that was taken for a title: begins with a tag, or holds script ("multi function (black)" is a title)
_PAGE_SOURCE = re.compile(r"^\s*</?[A-Za-z!]|\bgetTime\(|\baPageStart\b|\bue_t0\b|\bfunction\s*\([^()]*\)\s*\{")


Product = namedtuple("Product", "id title label url")  # texts; url: of its largest picture, '' where it has none


def load(name: str, source: AmazonSource) -> RawCatalogue:
    """Read the metadata; image is the picture's path below ``source.folder``, '' for a product without one.
    Raises: CatalogueError: metadata or pictures are not fetched, or the file is broken or of another vintage."""
    report, statuses = Report(), read_log(source.folder)
    rows = [(*p[:3], p.url and picture_path(p.url)) for p in read_products(source, report)]
    if not (source.folder / LOG).is_file() and any(row[3] for row in rows):
        raise CatalogueError(f"dataset {name}: {source.folder}: no pictures are fetched; {_FETCH}")

    def read_image(path: str) -> bytes:
        status = statuses.get(path, "not fetched") if path else "the product names none"
        if status != "ok":
            raise ImageError(status if status in ("corrupt", "too large") else "missing", status)
        return read_bytes(source.folder / path)

    return RawCatalogue(pd.DataFrame(rows, columns=["id", "title", "label", "image"], dtype=object), read_image, report)


def meta_path(source: AmazonSource) -> Path:
    """Where the metadata file lies, fetched or not."""
    name = f"{source.vintage}-{Path(urlsplit(source.meta).path).name}"
    return source.folder / name if "://" in source.meta else Path(source.meta)


def read_products(source: AmazonSource, report: Report) -> Iterator[Product]:
    """The usable products, one line in memory at a time; ``report`` counts why others are dropped. Raises: see load."""
    path, number = meta_path(source), 0
    if not path.is_file():
        raise CatalogueError(f"{path}: no such metadata file; {_FETCH}, or set `meta` to where it lies")
    try:
        for number, line in enumerate(_lines(path), 1):
            product = _product(line, source)
            if isinstance(product, Product):
                yield product
            elif line.strip():
                report.add(product, "dropped", 1, f"line {number}: {line[:120].decode('utf-8', 'replace').strip()}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:  # a part of a catalogue is another catalogue
        raise CatalogueError(f"{path}: damaged after line {number} ({error}); delete it and {_FETCH}") from None


def _lines(path: Path) -> Iterator[bytes]:
    """Lines; of one above MAX_LINE the first MAX_LINE + 1 bytes, and no more of it is held."""
    with path.open("rb") as file:
        opened = gzip.open if file.read(2) == b"\x1f\x8b" else open  # browsers unpack and leave the name
    with opened(path, "rb") as file:
        while line := file.readline(MAX_LINE + 1):
            yield line
            while len(line) > MAX_LINE and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE + 1)


def _product(line: bytes, source: AmazonSource) -> Product | str:
    """The product of one line, or why it is dropped."""
    if len(line) > MAX_LINE:
        return f"line of more than {MAX_LINE} bytes"
    if source.vintage == 2014 and line.count(b"{") > 1000:  # of an f-string Python parses them in quadratic time
        return "line of more than 1000 braces"
    try:
        text = line.decode("utf-8", "replace").strip()
        record = ast.literal_eval(text) if source.vintage == 2014 else json.loads(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last: nested too deep
        record = None
    if not isinstance(record, dict):
        return f"line not in the syntax of {source.vintage}"
    identity, categories, pictures = FIELDS[source.vintage]
    key, title = _text(record.get(identity)), unescaped(_text(record.get("title"))).strip()
    label = _leaf(_list(record.get(categories)) if source.vintage == 2014 else [record.get(categories)])
    url = _image_url([image for name in pictures for image in _list(record.get(name))])
    flaws = {
        f"no {identity}": not key,
        "page source in place of a title": _PAGE_SOURCE.search(title),
        "no title": not title,
        f"no {categories}": not label,
        "no picture named": source.missing_image == "drop" and not url,
    }
    return next((why for why, flaw in flaws.items() if flaw), Product(key, title, sys.intern(label), url))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _leaf(paths: list[Any]) -> str:
    """The label: the leaf of the deepest path, the first of equals, which says most and reads nothing but the product's
    own line; '' without one. Leaves of one name are one class. Markup, in which some paths of 2018 end, is no part."""
    parts = [list(map(_text, path)) for path in paths if isinstance(path, list)]
    deepest = max(([part for part in path if part[:1] not in ("", "<")] for path in parts), key=len, default=[])
    return " ".join(unescaped(deepest[-1]).split()) if deepest else ""


def _image_url(images: list[Any]) -> str:
    """The largest picture of a record, by the address that serves it today; '' for none, or a placeholder."""
    images = sorted(images, key=lambda image: isinstance(image, dict) and image.get("variant") != "MAIN")
    sizes = [map(image.get, ("hi_res", "large", "thumb")) if isinstance(image, dict) else [image] for image in images]
    url = next((canonical_url(_text(url)) for urls in sizes for url in urls if _text(url)), "")
    return "" if NO_PICTURE.search(url) else url


def canonical_url(url: str) -> str:
    """One address for one picture: on today's server, at full size, with ``+`` for ``%2B``; itself if it is none."""
    try:
        parts = urlsplit(html.unescape(url))
    except ValueError:
        return url
    host = parts.netloc.rpartition("@")[2].lower()  # with its port
    if parts.scheme not in ("http", "https") or not host:
        return url
    folder, _, file = unquote(parts.path, errors="replace").encode("utf-8", "replace").decode().rpartition("/")
    file = re.sub(r"\._.*\.", ".", file)  # _SX300_, _SR38,50_ and the like, to resize it
    server = "https://m.media-amazon.com" if _MOVED.fullmatch(host) else f"{parts.scheme}://{host}"
    return server + quote(f"{folder}/{file}", safe="/+,;=@!$&'()*:~-._")


def picture_path(url: str) -> str:
    """Where the picture of a canonical address lies below the folder; 256 subfolders, no part of the address in it."""
    name = hashlib.sha256((url.partition("://")[2] or url).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return f"pictures/{name[:2]}/{name[2:]}"


def read_log(folder: Path) -> dict[str, str]:
    """The last status of each picture path in the log; {} without a log. A line that a kill tore is no entry."""
    statuses = {}
    if (folder / LOG).is_file():
        for line in (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                statuses[entry["path"]] = sys.intern(entry["status"])
    return statuses


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
