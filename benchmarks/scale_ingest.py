"""Ingest a made-up catalogue of the paper's size: rates and memory.

    .venv/bin/python benchmarks/scale_ingest.py --out figures/scale/ingest.csv       200,000 products at 224 px: 30 GB
    .venv/bin/python benchmarks/scale_ingest.py --products 20000 --size 32           a minute

The products stand in the syntax of 2014, in 953 classes, with the faults that the real file has. Their pictures are
files of their own (links to a few thousand distinct JPEGs of 500 px), so each product's is read and decoded.
"""

import argparse
import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from icssl_lib import catalogue
from icssl_lib.catalogue import head_tail, open_catalogue
from icssl_lib.config import AmazonSource
from icssl_lib.sources.amazon import LOG, canonical_url, picture_path

CLASSES = 953
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 500 px on its longer side: something coloured and textured on white."""
    height, width = (500, int(rng.integers(300, 501)))[:: int(rng.choice([1, -1]))]
    colours = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((width - 80, height - 80))
    thing = np.asarray(colours) + rng.normal(0, 4, (height - 80, width - 80, 1))
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[40:-40, 40:-40] = thing.clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def make(folder: Path, products: int, distinct: int) -> AmazonSource:
    """Metadata and pictures as `fetch` would leave them; every fault in about one product of 200."""
    rng, draws = random.Random(0), np.random.default_rng(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = np.cumsum(1 / np.arange(1, len(words) + 1)).tolist()
    labels = [f"Class &amp; {k}" for k in range(CLASSES)]
    sizes = np.cumsum(1 / np.arange(3, CLASSES + 3)).tolist()
    (folder / "distinct").mkdir(parents=True)
    for k in range(distinct):
        (folder / "distinct" / str(k)).write_bytes(photograph(draws))
    for k in range(256):
        (folder / "pictures" / f"{k:02x}").mkdir(parents=True)
    whole = (folder / "distinct" / "0").read_bytes()
    with gzip.open(folder / "meta_Synthetic.json.gz", "wt", compresslevel=1) as meta, (folder / LOG).open("w") as log:
        for i in range(products):
            fault = rng.choice(FAULTS) if rng.random() < len(FAULTS) / 200 else ""
            asin = f"B{rng.randrange(i) if fault == 'repeated asin' and i else i:09d}"
            url = f"http://ecx.images-amazon.com/images/I/{i:09d}%2BL._SX300_.jpg"
            if fault == "placeholder":
                url = "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB1_.gif"
            product = {
                "asin": asin,
                "title": " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(5, 15))).title(),
                "price": rng.randrange(100, 9999) / 100,
                "imUrl": url,
                "related": {"also_bought": [f"B{rng.randrange(products):09d}" for _ in range(20)]},
                "description": " ".join(rng.choices(words, k=50)),
                "categories": [["Automotive", "Parts"], ["Automotive", "Parts", *rng.choices(labels, sizes)]],
            }
            for key in {"no title": ["title"], "no category": ["categories"], "no imUrl": ["imUrl"]}.get(fault, []):
                del product[key]
            line = repr(product)
            meta.write((line[: len(line) // 2] if fault == "torn line" else line) + "\n")
            path = picture_path(canonical_url(url))
            if fault == "corrupt picture":
                (folder / path).write_bytes(whole[: len(whole) // 2])
            elif fault != "gone picture" and not (folder / path).exists():
                os.link(folder / "distinct" / str(rng.randrange(distinct)), folder / path)
            log.write(json.dumps({"path": path, "status": "gone" if fault == "gone picture" else "ok"}) + "\n")
    return AmazonSource(source="amazon", vintage=2014, meta=str(folder / "meta_Synthetic.json.gz"), folder=folder)


FAULTS = [
    *("repeated asin", "placeholder", "no title", "no category", "no imUrl"),
    *("torn line", "corrupt picture", "gone picture"),
]


def ingest_here(source: AmazonSource, size: int, out: Path) -> None:
    """The ingest, in this process; prints what took how long."""
    seconds = {}

    def timed(function: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **options)
            seconds[function.__name__] = time.perf_counter() - started
            return result

        return call

    catalogue.load, catalogue.write_store = timed(catalogue.load), timed(catalogue.write_store)
    timed(catalogue.ingest)("synthetic", source, size, 0, out, False)
    print(json.dumps(seconds))


def anonymous_gb(process: subprocess.Popen) -> float:
    """Resident memory that no file backs: what a process needs. Pages of a mapped store can be dropped at any time."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e9


def measured(source: AmazonSource, size: int, out: Path) -> tuple[dict[str, float], float]:
    """Seconds by step, and the peak of anonymous memory in GB."""
    command = [sys.executable, __file__, "--here", source.model_dump_json(), str(size), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment), 0.0
    while process.poll() is None:
        peak = max(peak, anonymous_gb(process))
        time.sleep(0.2)
    assert process.returncode == 0, "the ingest failed"
    return json.loads(process.stdout.read()), peak


def batches_per_s(store: Path) -> float:
    """Random batches of 32 pictures, none of them twice, for at most five seconds."""
    images = np.load(store, mmap_mode="r")
    batches = np.random.default_rng(1).permutation(len(images))[: len(images) // 32 * 32].reshape(-1, 32)
    count, started = 0, time.perf_counter()
    while count < len(batches) and time.perf_counter() - started < 5:
        assert images[batches[count]].shape[0] == 32
        count += 1
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures, in pixels")
    parser.add_argument("--distinct", type=int, default=3000, help="different pictures")
    parser.add_argument("--most-memory", type=float, default=4, metavar="GB", help="fail above this")
    parser.add_argument("--out", type=Path, help="a CSV for the figures")
    parser.add_argument("--folder", type=Path, help="where to work; what is made there goes at the end")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        source, size, out = options.here
        ingest_here(AmazonSource.model_validate_json(source), int(size), Path(out))
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="icssl-scale", dir=options.folder))
    try:
        source = make(folder / "data", options.products, min(options.distinct, options.products))
        out = folder / "catalogue"
        store = out / "images.npy"
        seconds, peak = measured(source, options.size, out)
        started = time.perf_counter()
        made = open_catalogue(out)
        opened = time.perf_counter() - started
        head, tail = head_tail(made.label_counts)
        rest = seconds["ingest"] - seconds["load"] - seconds["write_store"]
        figures = {
            "products": options.products,
            "image_size": options.size,
            "read_per_s": round(options.products / seconds["load"]),
            "pictures_per_s": round(len(made.images) / seconds["write_store"]),
            "peak_memory_gb": round(peak, 2),
            "store_gb": round(store.stat().st_size / 1e9, 2),
            "minutes": round(seconds["ingest"] / 60, 1),
            "cores": len(os.sched_getaffinity(0)),
            "cpu": re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1],
        }
        print(pd.Series(figures).to_string())
        assert peak < options.most_memory, f"{peak:.2f} GB of memory, the limit is {options.most_memory}"
        print(f"{len(made.products)} products are left, {len(head)} classes of Train are head and {len(tail)} tail")
        print(made.report.drop(columns="example").to_string(index=False))
        del made
        print(f"cleaning, split and saving {rest:.1f} s, all of it {seconds['ingest']:.1f} s, opening {opened:.1f} s")
        with store.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cold, warm = batches_per_s(store), batches_per_s(store)
        print(f"random batches of 32: {cold:.0f} a second from disk, {warm:.0f} a second from memory")
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame([figures]).to_csv(options.out, index=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
