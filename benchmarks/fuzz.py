"""Mutated tables, pictures, lines of metadata and configurations: whatever comes is read, or refused in our own words.

    python benchmarks/fuzz.py --out figures/bench/fuzz.csv   100,000 of each, 10,000 configurations: half an hour
    python benchmarks/fuzz.py picture 4711                   one of them again

An input stops the run if it ends in an error that is not the library's, takes 2 s of CPU or 1 GB, starts a process,
opens a connection, or writes outside its folder. accepted: read whole; dropped: read, and what is left out counted."""

import argparse
import csv
import io
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import pandas as pd
import yaml
from PIL import Image

from icssl_lib.catalogue import CatalogueError, ingest
from icssl_lib.config import AmazonSource, ConfigError, TableSource, load_config
from icssl_lib.dag import ROOT, check_methods
from icssl_lib.images import ImageError, decode
from icssl_lib.sources.amazon import read_products
from icssl_lib.sources.raw import Report
from icssl_lib.sources.table import load

TOKENS = [mark.encode() for mark in "\0\"'\n\r\t,;:[]{}()&*!|>#%~-\u0301\u200b\u202e\u0e01"]
TOKENS += [b"\xff\xfe", b"\xff\xda", b"../", b"<<: *a", b"\n---\n", b"!!int ", b"!!python/object/apply:os.system "]
TOKENS += [b"[" * 3000, b"{" * 60, b"9" * 5000, b"nan", b"1e999", b"f'{", b"&amp;", b"\\ud800", b"function(", b"&#9999"]
VALUES = ["", None, True, -1, 1.5, 2**64, 10**30, 1e999, float("nan"), [], ["a"], {"a": [{}]}, "\0", '"', "~", "\ud800"]
VALUES += ["x\ty\nz", "../../etc/passwd", "e\u0301", "nan", "/dev/zero", "{id}", "a" * 300, "x" * 99_999]
ROWS = [{"id": str(i), "title": f"Mug {i}", "label": "ab"[i % 2], "image": "a.png", "part": "ssl"} for i in range(24)]
TITLES = [range(24), pd.date_range("1999", periods=24, tz="Asia/Tokyo"), pd.Categorical(range(24))]  # of Parquet
TITLES += [[value] * 24 for value in (b"\xff", [b"a"], {"a": 1}, None, 0.5, pd.Timedelta(1), pd.Timestamp.max)]
PARQUETS = [pd.DataFrame(ROWS).assign(title=title).to_parquet(compression=None) for title in TITLES]
NOISE = Image.effect_noise((48, 32), 90)
TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06" + bytes(7)
LINES = {  # by vintage
    2014: "{'asin': 'B1', 'title': \"A 'mug'\", 'categories': [['Home', 'Mugs']], 'imUrl': 'http://a.example/1.jpg'}",
    2018: '{"asin": "B1", "title": "A mug", "category": ["Home", "Mugs"], "imageURL": ["http://a.example/1.jpg"]}',
    2023: '{"parent_asin": "B1", "title": "A mug", "categories": ["Home"], "images": [{"large": "http://a.b/1.jpg"}]}',
}
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.rmdir", "os.chmod", "os.truncate")
FOLDER, SEEN = [""], []  # where an input may write while it is tried; what it did that it may not


def encoded(kind: str, mode: str = "L", **options: Any) -> bytes:
    NOISE.convert(mode).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


MODES = {"PNG": ["RGBA", "P", "I;16", "1"], "JPEG": ["RGB", "CMYK"], "TIFF": ["F"], "AVIF": ["RGB"], "BMP": ["P"]}
PICTURES = [encoded(kind, mode) for kind in MODES for mode in MODES[kind]]
PICTURES += [encoded(kind, progressive=True, lossless=True, exif=TURNED) for kind in ("JPEG", "PNG", "WEBP")]
PICTURES += [encoded(kind, save_all=True, append_images=[NOISE]) for kind in ("GIF", "WEBP", "PNG")]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """One to four times: a bit flipped, a byte drawn, a piece left out, repeated or moved, a token put in, or a cut."""
    for _ in range(rng.randint(1, 4)):
        at, other, n = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1), int(rng.expovariate(0.1))
        flipped, tail = bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]), data[at:]
        ends = [flipped + tail[1:], rng.randbytes(1) + tail[1:], tail[n:], tail[:n] * rng.choice([2, 99]) + tail, b""]
        ends += [data[other : other + n] + tail, rng.choice(TOKENS) + tail]
        data = data[:at] + rng.choices(ends, [3, 3, 1, 1, 0.3, 1, 3])[0]
    return data


def table(rng: random.Random, folder: Path) -> bool:
    """Its cells, its bytes, or both; under settings that are drawn; one in 25 is ingested."""
    rows, suffix = [*map(dict, ROWS)], rng.choice(["csv", "tsv", "jsonl", "parquet"])
    for _ in range(rng.randrange(3)):
        rng.choice(rows)[rng.choice([*ROWS[0]])] = rng.choice(VALUES)
    file, cells = io.StringIO(), [ROWS[0], *(row.values() for row in rows)]
    if suffix == "jsonl":
        file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        csv.writer(file, delimiter="\t" if suffix == "tsv" else ",").writerows(cells)
    data = rng.choice(PARQUETS) if suffix == "parquet" else file.getvalue().encode("utf-8", "replace")
    (folder / "a.png").write_bytes(rng.choice(PICTURES))
    path = folder / f"table.{suffix}"
    path.write_bytes(mutated(rng, data) if rng.random() < 0.7 else data)
    drawn = {"image": ["image", None, "{id}.png", "../{title}"], "part": [None, None, "part"], "id": ["id", None]}
    drawn |= {"labels": [None, {"table": path, "id": "id", "label": "label"}], "missing_image": ["keep", "drop"]}
    source = TableSource(source="table", table=path, **{name: rng.choice(values) for name, values in drawn.items()})
    if rng.random() < 0.04:
        return "dropped" not in set(ingest("a", source, 8, 0, folder / "out", False).report.action)
    return not load("a", source).report


def picture(rng: random.Random, folder: Path) -> bool:
    try:
        return decode(mutated(rng, rng.choice(PICTURES)), 32).shape == (32, 32, 3)
    except ImageError:
        return False


def line(rng: random.Random, folder: Path) -> bool:
    vintage, path, report = rng.choice([*LINES]), folder / "meta.jsonl", Report()
    path.write_bytes(mutated(rng, LINES[vintage].encode()))
    source = AmazonSource(source="amazon", vintage=vintage, meta=str(path), folder=folder)
    return bool([*read_products(source, report)]) and not report


def configuration(rng: random.Random, folder: Path) -> bool:
    """Of a study that is shipped a value, the text, or both."""
    data, path = rng.choice(sorted((ROOT / "config").glob("*.yaml"))).read_bytes(), folder / "study.yaml"
    if rng.random() < 0.5:
        study = yaml.safe_load(data)
        place = rng.choice([study, *(section for section in study.values() if section and isinstance(section, dict))])
        place[rng.choice([*place])] = rng.choice(VALUES)
        data = yaml.safe_dump(study).encode("utf-8", "replace")
    path.write_bytes(data if rng.random() < 0.2 else mutated(rng, data))
    check_methods(load_config(path))
    return True


KINDS = {configuration: 10_000, picture: 100_000, line: 100_000, table: 100_000}


def watch(event: str, arguments: tuple) -> None:
    """An audit hook, which nothing can take away again."""
    writes = event in WRITES or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
    inside = writes and os.path.abspath(str(arguments[0])).startswith((FOLDER[0] + os.sep, sys.prefix))
    starts = event in ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect")
    if FOLDER[0] and (starts or (writes and not inside)):
        SEEN.append((event, *arguments))


def fuzz(kind: Callable, numbers: Sequence[int]) -> dict:
    """Try inputs of one kind. Raises: RuntimeError: from one of them, which it names, comes what may not."""
    counts, longest = dict.fromkeys(["accepted", "dropped", "refused"], 0), 0.0
    before = getrusage(RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as folder:
        for number in numbers:
            name, FOLDER[0], begun = f"{kind.__name__} {number}", os.path.realpath(folder), process_time()
            try:
                became = "accepted" if kind(random.Random(name), Path(FOLDER[0])) else "dropped"
            except (CatalogueError, ConfigError):
                became = "refused"
            except Exception as error:
                raise RuntimeError(f"{name}: {error!r}") from error
            finally:
                FOLDER[0] = ""
            counts[became] += 1
            seconds, taken = process_time() - begun, (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1e6  # on Linux kB
            longest = max(longest, seconds)
            if SEEN or seconds > 2 or taken > 1:
                raise RuntimeError(f"{name}: {seconds:.1f} s, {taken:.2f} GB, {SEEN}")
    cost = {"longest_s": round(longest, 3), "largest_gb": round(taken, 3)}
    return {"kind": kind.__name__, "tried": len(numbers)} | counts | cost


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("again", nargs="*", help="kind and number of one input")
    parser.add_argument("--out", type=Path)
    options, rows = parser.parse_args(), []
    sys.addaudithook(watch)
    for kind, size in KINDS.items():
        if options.again[:1] in ([], [kind.__name__]):
            rows.append(fuzz(kind, list(map(int, options.again[1:])) or range(size)))
            print(rows[-1], flush=True)
    if options.out:
        pd.DataFrame(rows).to_csv(options.out, index=False)
