"""A catalogue from a CSV, TSV, JSONL or Parquet table: all is text or bytes, and nothing is evaluated or unpickled."""

import csv
import gzip
import json
import zlib
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icssl_lib.config import TableSource, nearest
from icssl_lib.images import ImageError, read_bytes
from icssl_lib.sources.raw import CatalogueError, RawCatalogue, Report

SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")


def load(name: str, source: TableSource) -> RawCatalogue:
    """Read the table; texts are str ('' where absent), images paths or bytes. A line of JSONL that is no object is
    dropped and counted. Too many fields in a line, or a quote that does not close in CSV, stop the reading.
    Raises: CatalogueError: absent, broken, of unknown kind, or without a column that is named."""
    report, where = Report(), f"dataset {name}: {source.table}"
    folder = (source.image_folder or source.table.parent).resolve()
    columns = {"id": source.id, "title": source.title, "label": source.label, "image": source.image}
    try:
        values = _read(source.table, [column for column in columns.values() if column is not None], report)
        if not folder.is_dir():
            raise CatalogueError(f"{folder}: no such image folder")
    except FileNotFoundError:
        raise CatalogueError(f"{where}: no such file") from None
    except CatalogueError as error:
        raise CatalogueError(f"{where}: {error}") from None
    except (ValueError, EOFError, OSError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise CatalogueError(f"{where}: a broken table, or no UTF-8 ({' '.join(str(error).split())})") from None
    n = len(values[source.title])
    absent = {"id": range(n), "image": [""] * n}  # for columns that are not named
    cells = {field: absent[field] if column is None else values[column] for field, column in columns.items()}
    table = pd.DataFrame({f: map(_image if f == "image" else _text, cells[f]) for f in cells}, dtype=object)

    def read_image(reference: bytes | str) -> bytes:
        """Bytes as they are; of a path, which may not lead out of the folder, links followed, the file's."""
        if isinstance(reference, bytes):
            return reference
        try:
            file = (folder / reference).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
            raise ImageError("missing", f"{reference!r}: {error}") from None
        if not file.is_relative_to(folder):
            raise ImageError("outside the folder", repr(reference))
        return read_bytes(file)

    return RawCatalogue(table, None if source.image is None else read_image, report)


def _read(path: Path, wanted: list[str], report: Report) -> dict[str, list[Any]]:
    """The wanted columns of any kind of table."""
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise CatalogueError(f"unknown kind of table; the name must end in {', '.join(SUFFIXES)}")
    if name.endswith(".parquet"):
        with pq.ParquetFile(path) as table:
            _check_columns(wanted, table.schema_arrow.names)
            return table.read(columns=wanted).to_pydict()
    with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        return _read_jsonl(file, wanted, report) if ".jsonl" in name else _read_csv(file, wanted, ".tsv" in name)


def _check_columns(wanted: list[str], known: list[str]) -> None:
    for column in wanted:
        if column not in known:
            raise CatalogueError(f"no column {column!r}; {nearest(column, known)}")


def _read_csv(file: TextIO, wanted: list[str], tabs: bool) -> dict[str, list[Any]]:
    reader = csv.reader(file, delimiter="\t" if tabs else ",", strict=True)  # strict: no quote swallows lines below it
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        if not tabs:
            where = f"a quote that does not close, at line {reader.line_num} or above ({error})"
            remedy = 'put a text that holds quotes in quotes, and each of its own twice: "a ""vintage"" mug"'
            raise CatalogueError(f"{where}; {remedy}") from None
        file.seek(0)  # titles of inches and nicknames: written without any quoting
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    header = rows.pop(0) if rows else []
    _check_columns(wanted, header)
    if surplus := next((row for row in rows if len(row) > len(header)), None):
        raise CatalogueError(f"a row has more fields than the header; quote texts with a separator: {surplus!r:.120}")
    places = [header.index(column) for column in wanted]
    return {c: [row[i] if i < len(row) else "" for row in rows] for c, i in zip(wanted, places, strict=True)}


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


def _text(value: Any) -> str:
    """Numbers as text; '' for what is absent or no text (a list, an object)."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if pd.api.types.is_scalar(value) and not pd.isna(value) else ""


def _image(value: Any) -> bytes | str:
    """A path or encoded bytes; a struct of both is how the datasets library stores a picture."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, bytes) else _text(value)
