"""A catalogue from a CSV, TSV, JSONL or Parquet table, with pictures in a folder or in a column of bytes.

Everything is read as text or bytes; nothing is evaluated or unpickled.
"""

import csv
import gzip
import json
import zlib
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icssl_lib.catalogue import CatalogueError, RawCatalogue, Report
from icssl_lib.config import TableSource, nearest
from icssl_lib.images import ImageError, read_bytes

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")


def load(name: str, source: TableSource) -> RawCatalogue:
    """Read the table; texts are str ('' where absent), images paths or bytes.

    A line of JSONL that is no object is dropped and counted (an export that was cut short ends in one); a CSV or
    TSV line with too many fields stops the reading, and so does a CSV's quote that does not close at a field's end,
    since after an unquoted comma or quote no column is certain. In a TSV such a quote makes all of them plain text.

    Raises:
        CatalogueError: absent, empty, broken, not a table, of unknown kind, or without a column that is named.
    """
    path, report = source.table, Report()
    where = f"dataset {name}: {path}"
    columns = {"id": source.id, "title": source.title, "label": source.label, "image": source.image}
    wanted = [column for column in columns.values() if column is not None]
    if not path.is_file():
        raise CatalogueError(f"{where}: no such file")
    if source.image_folder is not None and not source.image_folder.is_dir():
        raise CatalogueError(f"dataset {name}: {source.image_folder}: no such image folder")
    try:
        if path.name.lower().endswith(".parquet"):
            values = _read_parquet(path, wanted, where)
        elif path.name.lower().endswith(TEXT_SUFFIXES):
            values = _read_text(path, wanted, report, where)
        else:
            raise CatalogueError(
                f"{where}: unknown kind of table; the name must end in {', '.join(TEXT_SUFFIXES)} or .parquet"
            )
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{where}: not UTF-8 ({error}); save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CatalogueError(f"{where}: broken gzip file ({error}); fetch or compress it again") from None
    except (pd.errors.ParserError, pa.ArrowException) as error:
        raise CatalogueError(f"{where}: broken table: {str(error).strip()}") from None
    except OSError as error:
        raise CatalogueError(f"{where}: cannot be read: {error.strerror or error}") from None

    rows = len(values[source.title])
    table = pd.DataFrame(
        {
            "id": [str(row) for row in range(rows)] if source.id is None else map(_text, values[source.id]),
            "title": map(_text, values[source.title]),
            "label": map(_text, values[source.label]),
            "image": None if source.image is None else map(_image, values[source.image]),
        },
        dtype=object,
    )
    folder = (source.image_folder or path.parent).resolve()

    def read_image(reference: bytes | str) -> bytes:
        return reference if isinstance(reference, bytes) else _read_inside(folder, reference)

    return RawCatalogue(table, None if source.image is None else read_image, report)


def _read_inside(folder: Path, reference: str) -> bytes:
    """The bytes of a picture named by a path relative to ``folder`` (resolved); links may not leave it."""
    if not reference:
        raise ImageError("missing", "no path given")
    try:
        file = (folder / reference).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise ImageError("missing", f"{reference!r}: {error}") from None
    if not file.is_relative_to(folder):
        raise ImageError("outside the folder", repr(reference))
    return read_bytes(file)


def _check_columns(wanted: list[str], known: list[str], where: str) -> None:
    for column in wanted:
        if column not in known:
            raise CatalogueError(f"{where}: no column {column!r}; {nearest(column, known)}")


def _read_parquet(path: Path, wanted: list[str], where: str) -> dict[str, list[Any]]:
    with pq.ParquetFile(path) as file:
        _check_columns(wanted, file.schema_arrow.names, where)
        return file.read(columns=wanted).to_pydict()


def _read_text(path: Path, wanted: list[str], report: Report, where: str) -> dict[str, list[Any]]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        head = file.read(1000).lstrip()
        if not head:
            raise CatalogueError(f"{where}: the file is empty")
        if head.startswith("<"):
            raise CatalogueError(f"{where}: a web page (HTML or XML), not a table; was the download refused?")
        file.seek(0)
        if ".jsonl" in path.name.lower():
            return _read_jsonl(file, wanted, report, where)
        separator = "\t" if ".tsv" in path.name.lower() else ","
        quoting = _quoting(file, separator, where)
        file.seek(0)
        raw = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, na_filter=False, quoting=quoting)
    _check_columns(wanted, list(raw.columns), where)
    if not isinstance(raw.index, pd.RangeIndex):  # pandas takes surplus fields for row names
        raise CatalogueError(f"{where}: the rows have more fields than the header; quote texts with a separator")
    return {column: raw[column].tolist() for column in wanted}


def _quoting(file: TextIO, separator: str, where: str) -> int:
    """How pandas is to take quotes. It would read on from one that opens a text to the next one, lines further down,
    and lose what lies between."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        if separator == "\t":  # titles of inches and nicknames: written without any quoting
            return csv.QUOTE_NONE
        raise CatalogueError(
            f"{where}: a quote that does not close, at line {reader.line_num} or above ({error}); "
            'put a text that holds quotes in quotes, and each of its own twice: "a ""vintage"" mug"'
        ) from None
    return csv.QUOTE_MINIMAL


def _read_jsonl(file: TextIO, wanted: list[str], report: Report, where: str) -> dict[str, list[Any]]:
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
        raise CatalogueError(f"{where}: no line is a JSON object; expected one product per line")
    _check_columns(wanted, sorted(known), where)
    return dict(zip(wanted, map(list, zip(*records, strict=True)), strict=True))


def _text(value: Any) -> str:
    """Numbers as text; '' for what is absent or no text (a list, an object)."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    return str(value) if pd.api.types.is_scalar(value) and not pd.isna(value) else ""


def _image(value: Any) -> bytes | str:
    """A path or encoded bytes; a struct of both is how the datasets library stores a picture."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, bytes) else _text(value)
