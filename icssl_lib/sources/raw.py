"""What ``load(name, source)`` of each module here delivers: a table before cleaning, pictures, and a report."""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
from PIL import Image

_ENTITY = re.compile(r"&(#\d{1,9}|#[xX][0-9a-fA-F]{1,9}|[A-Za-z][A-Za-z0-9]{1,40});")
unescaped = partial(_ENTITY.sub, lambda entity: html.unescape(entity[0]))  # a text, HTML entities as their characters


class CatalogueError(ValueError):
    """A catalogue that cannot be used; the message names the file, what is wrong and what to do."""


class Report(dict[tuple[str, str], list[Any]]):
    """What ingest did to products: a reason and an action (dropped, kept, repaired) to count and first example."""

    def add(self, reason: str, action: str, count: int, example: str) -> None:
        self.setdefault((reason, action), [0, example[:300].encode("utf-8", "replace").decode()])[0] += count

    def rows(self, reason: str, action: str, products: pd.DataFrame, column: str = "title") -> None:
        if len(products):
            self.add(reason, action, len(products), f"{products['id'].iloc[0]}: {products[column].iloc[0]}")

    def frame(self) -> pd.DataFrame:
        """Columns reason, action, count, example, in the order of the first occurrence."""
        rows = [[*key, *row] for key, row in self.items()]
        return pd.DataFrame(rows, columns=["reason", "action", "count", "example"])

    def __str__(self) -> str:
        rows = [f"{n} {action}: {reason} (e.g. {example})" for (reason, action), (n, example) in self.items()]
        return "; ".join(rows) or "nothing dropped"


@dataclass
class RawCatalogue:
    """What a source delivers, before cleaning.
    table: columns id, title, label (str), image (what ``read_image`` understands; equal str are one picture) and, where
    the source splits, part.
    read_image: from reference to encoded bytes or a picture; called from several threads, raises ImageError."""

    table: pd.DataFrame
    read_image: Callable[[Any], bytes | Image.Image] | None  # None: a catalogue without pictures
    report: Report = field(default_factory=Report)  # with the rows that the source could not read
    class_words: list[str] = field(default_factory=list)  # synonyms of the words of class names that the source knows
