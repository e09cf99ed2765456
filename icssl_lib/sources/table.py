"""A catalogue from a CSV, TSV, JSONL or Parquet table: all is text or bytes, and nothing is evaluated or unpickled."""

import csv
import gzip
import io
import json
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from icssl_lib.config import TableSource, nearest
from icssl_lib.images import ImageError, read_bytes
from icssl_lib.sources.raw import CatalogueError, RawCatalogue, Report

SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")
ARCHIVES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # also of Excel
FOREIGN = {  # what a file may be whose name says otherwise, by its first bytes
    "gzip; let its name end in .gz": (b"\x1f\x8b",),
    "Parquet; let its name end in .parquet": (b"PAR1",),
    "a workbook or an archive; save the sheet as CSV, or unpack it": ARCHIVES,
    "UTF-16; save it as UTF-8": (b"\xff\xfe", b"\xfe\xff"),
    "a format that is not read; save it as CSV or Parquet": (b"ARROW1", b"FEA1", b"ORC", b"SQLite f", b"\x80\x04\x95"),
}
MAX_UNPACKED = 2**28  # bytes of a table, if they are a hundred times those on disk: a few kB may hold gigabytes
csv.field_size_limit(2**31 - 1)  # a column that nobody asks for may hold a book, or a picture in base64


def load(name: str, source: TableSource) -> RawCatalogue:
    """Read the table; texts are str ('' where absent), images paths or bytes, of a list of them the first. A line of
    JSONL that is no object is dropped and counted. Lines with too many or too few fields, a quote that does not close
    in CSV, and a list or an object where a text is expected stop the reading.
    Raises: CatalogueError: absent, broken, of unknown kind, or without a column that is named."""
    report, where = Report(), f"dataset {name}: {source.table}"
    folder = (source.image_folder or source.table.parent).resolve()
    named = re.findall(r"{([^{}]+)}", source.image or "")  # columns that a pattern of paths names
    texts = {"id": source.id, "title": source.title, "label": source.label, "part": source.part}
    texts = {field: column for field, column in texts.items() if column and not (field == "label" and source.labels)}
    wanted = [*texts.values(), *(named or [source.image] * (source.image is not None))]
    values = _table(where, source.table, wanted, report)
    if not folder.is_dir():
        raise CatalogueError(f"{where}: {folder}: no such image folder")
    column = {name: [text_of(where, name, cell) for cell in values[name]] for name in {*texts.values(), *named}}
    fields, rows = {field: column[name] for field, name in texts.items()}, range(len(values[source.title]))
    fields.setdefault("id", list(map(str, rows)))
    if source.labels:
        fields["label"] = _labels(f"dataset {name}", source, fields["id"], report)
    if named:  # no str.format, whose fields may ask for attributes
        fields["image"] = [re.sub(r"{([^{}]+)}", lambda f, i=i: column[f[1]][i], source.image) for i in rows]
    else:
        cells = values[source.image] if source.image else [""] * len(rows)
        fields["image"] = [image_of(where, source.image, cell) for cell in cells]

    def read_image(reference: bytes | str) -> bytes:
        """Bytes as they are; of a path, which may not lead out of the folder, links followed, the file's."""
        if isinstance(reference, bytes):
            return reference
        try:  # a zip file from another system may spell an accent otherwise
            forms = [reference, *(unicodedata.normalize(form, reference[:5000]) for form in ("NFC", "NFD"))]
            file = next((path for path in map(folder.joinpath, forms) if path.exists()), folder / reference).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
            raise ImageError("missing", f"{reference!r}: {error}") from None
        if not file.is_relative_to(folder):
            raise ImageError("outside the folder", repr(reference))
        return read_bytes(file)

    return RawCatalogue(pd.DataFrame(fields, dtype=object), None if source.image is None else read_image, report)


def _labels(where: str, source: TableSource, ids: list[str], report: Report) -> list[str]:
    """Of each id its label by the second table, the first of several; '' where it has none."""
    other = source.labels
    values = _table(f"{where}: {other.table}", other.table, [other.id, other.label], report)
    rows = [[text_of(other.table, name, cell) for cell in values[name]] for name in (other.id, other.label)]
    found = dict(zip(reversed(rows[0]), reversed(rows[1]), strict=True))
    further, lost = [*(Counter(rows[0]) - Counter(found.keys())).elements()], [key for key in ids if key not in found]
    for what, keys in {"further label of an id": further, "id without a label": lost}.items():
        if keys:
            report.add(f"{what}, in {other.table.name}", "left out", len(keys), keys[0])
    return [found.get(key, "") for key in ids]


def _table(where: object, path: Path, wanted: list[str], report: Report) -> dict[str, list[Any]]:
    name = path.name.lower()
    try:
        if not name.endswith(SUFFIXES):
            raise CatalogueError(f"unknown kind of table; the name must end in {', '.join(SUFFIXES)}")
        most, kind = max(MAX_UNPACKED, 100 * path.stat().st_size), Path(name.removesuffix(".gz")).suffix
        with (gzip.open if name.endswith(".gz") else open)(path, "rb") as file:
            first = file.read(8)
            for what, starts in FOREIGN.items():
                if first.startswith(starts) and not (first[:4] == b"PAR1" and kind == ".parquet"):
                    raise CatalogueError(f"its bytes are those of {what}")
            if kind == ".parquet":
                table, values, taken = pq.ParquetFile(file), {column: [] for column in wanted}, 0
                _check_columns(wanted, table.schema_arrow.names)
                nested = any(pa.types.is_nested(table.schema_arrow.field(column).type) for column in wanted)
                for batch in table.iter_batches(2 if nested else 256, columns=list(values)):
                    taken += 8 * nested * batch.nbytes  # in Python lists are larger
                    for column, cells in (batch.to_pydict() if taken <= most else {}).items():
                        values[column] += cells
                        taken += _size(cells)
                    if taken > most:
                        raise CatalogueError(f"more than {most} bytes when unpacked")
                return values
            file.seek(most)  # of gzip this reads on to there, and keeps nothing
            if file.read(1):
                raise CatalogueError(f"more than {most} bytes when unpacked")
            file.seek(0)
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            return _read_jsonl(text, wanted, report) if kind == ".jsonl" else _read_csv(text, wanted, kind == ".tsv")
    except FileNotFoundError:
        raise CatalogueError(f"{where}: no such file") from None
    except CatalogueError as error:
        raise CatalogueError(f"{where}: {error}") from None
    except (ValueError, OverflowError, EOFError, OSError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise CatalogueError(f"{where}: a broken table, or no UTF-8 ({' '.join(str(error).split())})") from None


def _size(value: Any) -> int:
    return sys.getsizeof(value) + sum(map(_size, {list: iter, dict: dict.values}.get(type(value), lambda _: ())(value)))


def _check_columns(wanted: list[str], known: list[str]) -> None:
    for column in wanted:
        if column not in known:
            hint = nearest(column, known)
            for mark, what in {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}.items():
                if len(known) == 1 and mark in known[0]:
                    hint = f"its fields are separated by {what}; save it with commas as .csv, or with tabs as .tsv"
            raise CatalogueError(f"no column {column!r}; {hint}")
        if known.count(column) > 1:
            raise CatalogueError(f"{known.count(column)} columns are called {column!r}; rename all but one")


def _records(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of a CSV. Raises: CatalogueError: a quote does not close."""
    reader, line = csv.reader(file, strict=True), 1  # strict: no quote swallows lines below it
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        remedy = 'put a text that holds quotes in quotes, and each of its own twice: "a ""vintage"" mug"'
        raise CatalogueError(f"line {line}: a quote that does not close ({error}); {remedy}") from None


def _tab_records(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of a TSV. A line with as many tabs as the header is a record, so that a stray quote, an
    inch, say, touches its own line alone; one with fewer goes on in the next while a quote of its own is open."""
    lines, width, at = re.split("\r\n|\n|\r", file.read()), 0, 0
    while at < len(lines):
        start, tabs, quotes = at, 0, 0
        while at == start or (tabs < width and quotes % 2 and at < len(lines)):
            tabs, quotes, at = tabs + lines[at].count("\t"), quotes + lines[at].count('"'), at + 1
        text, width = "\n".join(lines[start:at]), width or tabs
        try:
            row = next(csv.reader([text], delimiter="\t", strict=True), [])
        except csv.Error:
            row = []
        yield start + 1, row if len(row) == width + 1 else text.split("\t") if text else []


def _read_csv(file: TextIO, wanted: list[str], tabs: bool) -> dict[str, list[Any]]:
    records = [(line, row) for line, row in (_tab_records if tabs else _records)(file) if row]
    header = records.pop(0)[1] if records else []
    _check_columns(wanted, header)
    if bad := [f"{line} ({len(row)})" for line, row in records if len(row) != len(header)]:
        shown = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        remedy = "quote texts that hold a separator or a line break"
        raise CatalogueError(f"the header has {len(header)} fields, unlike line {shown}; {remedy}")
    places = [header.index(column) for column in wanted]
    return {c: [row[i] for _, row in records] for c, i in zip(wanted, places, strict=True)}


def _read_jsonl(file: TextIO, wanted: list[str], report: Report) -> dict[str, list[Any]]:
    records, known = [], set()
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            known |= record.keys()
            records.append([record.get(column) for column in wanted])
        else:
            report.add("line is no JSON object", "dropped", 1, f"line {number}: {line.strip()}")
    if not records:
        raise CatalogueError("no line is a JSON object; expected one product per line")
    _check_columns(wanted, sorted(known))
    return dict(zip(wanted, map(list, zip(*records, strict=True)), strict=True))


def text_of(where: object, column: str, value: Any) -> str:
    """Numbers as text; '' for what is absent. Raises: CatalogueError: a list, an array or an object."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not pd.api.types.is_scalar(value) and not isinstance(value, Path):
        kind = {"dict": "an object", "list": "a list"}.get(type(value).__name__, f"a {type(value).__name__}")
        raise CatalogueError(f"{where}: column {column!r} holds {kind}, expected a text: {value!r:.80}")
    return "" if pd.isna(value) else str(value)


def image_of(where: object, column: str, value: Any) -> bytes | str | Image.Image:
    """A path, encoded bytes or a picture, of a list its first; the datasets library keeps bytes and path together."""
    if isinstance(value, np.ndarray) and value.ndim > 1:
        if value.dtype != np.uint8 or value.shape[2:] not in ((), (3,), (4,)):
            raise CatalogueError(f"{where}: {column!r} holds {value.dtype} pixels {value.shape}, not uint8 (H, W, 3)")
        return Image.fromarray(value)
    if isinstance(value, list | tuple | np.ndarray):
        return image_of(where, column, value[0]) if len(value) else ""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, bytes | Image.Image) else text_of(where, column, value)
