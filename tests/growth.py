"""How cost grows: seconds and memory against products, classes, batch size and title length; too steep a slope fails.

    .venv/bin/python tests/growth.py                             figures/bench/growth*: some minutes, on one core
    .venv/bin/python tests/growth.py --quick --out /tmp/growth   the smallest sizes: that it runs; nothing is judged

The library's own functions, on made-up products and models with random weights. Each measurement has a process of its
own, a fork of this one (Linux). Seconds are the CPU's, on one thread: on a machine to itself they are the clock's, and
other jobs disturb them less. Memory is the peak above what the process held when the work began. Where twice as much
costs twice as much, the slope of log(seconds) against log(x) is 1; it is fitted to the larger half of the sizes, where
fixed cost matters least.
"""

import argparse
import ctypes
import gc
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, BertModel

from icssl_lib import catalogue, explore, figures, metrics
from icssl_lib.adapt import Batch, Towers, epoch_batches, make_accelerator
from icssl_lib.config import FRACTIONS, AdaptConfig, RuntimeConfig, TableSource
from icssl_lib.encoders import TextTower
from icssl_lib.fast import fast
from icssl_lib.methods import simcse
from icssl_lib.scale import WholeBatch

SIZES = {
    "products": [1000, 3000, 10_000, 30_000, 100_000, 200_000],
    "classes": [10, 30, 100, 300, 1000, 3000, 10_000],
    "batch size (titles)": [8, 16, 32, 64, 128, 256],
    "title length (tokens)": [4, 8, 16, 32, 64],
}
# Similarity within a batch and attention within a title are quadratic by nature, and here a small part.
# Work that is linear in products leaves a CPU's caches on the way up, which adds to the slope; n^1.5 is still refused.
ALLOWED = {"products": 1.25, "classes": 1.15, "batch size (titles)": 1.5, "title length (tokens)": 1.5}
CLASSES = 953  # where products are counted; the paper's largest catalogue has about as many
BERT = {"vocab_size": 3000, "num_hidden_layers": 2, "num_attention_heads": 4}
Act = Callable[[], object]  # a function that returns one prepares a size; the act is measured


def labelled(n: int, classes: int = CLASSES) -> pd.DataFrame:
    """``n`` items: id, label (a long tail; each class is there, where n allows), predicted (70% are right)."""
    rng, weights = np.random.default_rng(0), 1 / np.arange(3, classes + 3)
    drawn = np.append(np.arange(classes), rng.choice(classes, n, p=weights / weights.sum()))[:n]
    label = np.array([f"Class {k}" for k in range(classes)], object)[drawn]
    predicted = np.where(rng.random(n) < 0.7, label, rng.permutation(label))
    return pd.DataFrame({"id": [f"B{i:09d}" for i in range(n)], "label": label, "predicted": predicted})


def made_up(n: int) -> pd.DataFrame:
    """`labelled` with titles of 4 to 14 words; one in 20 repeats another in capitals."""
    rng = np.random.default_rng(1)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnoprst"), rng.integers(2, 10))) for _ in range(3000)])
    drawn = words[np.minimum(rng.zipf(1.3, (n, 14)), len(words)) - 1]
    titles = [" ".join(row[:length]) for row, length in zip(drawn, rng.integers(4, 15, n), strict=True)]
    titles[::20] = [title.upper() for title in titles[1::20]]
    return labelled(n).assign(title=titles)


def ingest(n: int, folder: Path) -> Act:
    made_up(n).to_csv(folder / "products.csv", index=False)
    source = TableSource(source="table", table=folder / "products.csv", id="id", image=None)
    return lambda: catalogue.ingest("made up", source, 32, 0, folder / "catalogue", progress=False)


def subsets(n: int, _: Path) -> Act:
    train = made_up(n * 3 // 10).sample(frac=1, random_state=0, ignore_index=True)
    return lambda: [catalogue.train_subset(train, fraction, 0) for fraction in FRACTIONS]


def head_tail(n: int, classes: int) -> Act:
    made = catalogue.Catalogue("", labelled(n, classes).assign(part="train"), None, pd.DataFrame(), "", Path())
    return lambda: catalogue.head_tail(replace(made).label_counts)  # a Catalogue keeps its counts, a new one has none


def neighbours(n: int, typed: bool) -> Act:
    rows = np.random.default_rng(0).standard_normal((n, 64), dtype=np.float32)
    if not typed:
        return lambda: explore.nearest_positions(rows, 10, np.arange(100))
    view = explore.View("view", rows, lambda titles: rows[[int(title) for title in titles]], lambda titles, _: rows)
    space = explore.Exploration("", pd.DataFrame("", range(n), ["id", "title", "label"]), None, {"view": view})
    return lambda: [explore.neighbours(space, "view", str(i)) for i in range(100)]


def bootstrap(n: int, _: Path) -> Act:
    items = labelled(n // 10).assign(dataset="made up", fraction=1.0)
    runs = pd.concat([items.assign(method=m, seed=s) for m in ("origin", "simcse") for s in range(3)])
    return lambda: metrics.paired_bootstrap(runs, "simcse", metric="macro_f1")


def scores(classes: int, _: Path) -> Act:
    items = labelled(50_000, classes)
    head, tail = catalogue.head_tail(items["label"].value_counts())
    return lambda: metrics.scores(items["label"], items["predicted"], head, tail)


def step_of(model: torch.nn.Module, encoder: torch.nn.Module, backward: Act) -> Act:
    """A training step, on the fast path."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with fast(encoder):
            backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def titles_of(n: int, length: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask (n, length): titles of one length."""
    return {"input_ids": torch.randint(3000, (n, length)), "attention_mask": torch.ones(n, length, dtype=torch.long)}


def classify(classes: int, _: Path) -> Act:
    model = BertForSequenceClassification(BertConfig(**BERT, hidden_size=32, intermediate_size=128, num_labels=classes))
    tokens, target = titles_of(32, 16), torch.randint(classes, (32,))
    return step_of(model, model, lambda: cross_entropy(model(**tokens).logits, target).backward())


def adapt(n: int, length: int) -> Act:
    encoder = BertModel(BertConfig(**BERT, hidden_size=128, intermediate_size=512))
    towers, config = Towers(TextTower(encoder, "mean", projection_dim=128, depth=2), None), AdaptConfig()
    whole = WholeBatch(towers, None, make_accelerator(RuntimeConfig(device="cpu")))
    batch = Batch(titles_of(n, length), None, torch.arange(n))
    return step_of(towers, encoder, lambda: whole.backward(simcse(whole, batch, config)))


# By work and what it is measured against: makes the act of a size, in an empty folder.
WORKS: dict[tuple[str, str], Callable[[int, Path], Act]] = {
    ("Ingest of a table", "products"): ingest,
    ("Six nested subsets of Train", "products"): subsets,
    ("Head and tail", "products"): lambda n, _: head_tail(n, CLASSES),
    ("Neighbours of 100 typed titles", "products"): lambda n, _: neighbours(n, typed=True),
    ("Neighbours of 100 products", "products"): lambda n, _: neighbours(n, typed=False),
    ("Bootstrap of macro-F1 on Test (a tenth)", "products"): bootstrap,
    ("Batches of an epoch", "products"): lambda n, _: lambda: list(epoch_batches(n, 32, torch.Generator())),
    ("Scores of 50,000 predictions", "classes"): scores,
    ("Head and tail of 50,000 products", "classes"): lambda classes, _: head_tail(50_000, classes),
    ("Classifier step, width 32", "classes"): classify,
    ("SimCSE step, 16 tokens", "batch size (titles)"): lambda n, _: adapt(n, 16),
    ("SimCSE step, 32 titles", "title length (tokens)"): lambda length, _: adapt(32, length),
}


def measure(work: str, against: str, x: int) -> tuple[float, float]:
    """Seconds (of the fastest call) and megabytes at size x, in this process."""
    prepare, status, libc = WORKS[work, against], Path("/proc/self/status"), ctypes.CDLL(None)
    gc.freeze()  # what is imported: a collection in this fork would copy all of it
    libc.mallopt(-3, 2_000_000_000)  # M_MMAP_THRESHOLD: else arrays above 32 MB get new pages at each call, and a step
    libc.mallopt(-1, 2_000_000_000)  # M_TRIM_THRESHOLD     of the allocator's would pass for growth
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as folder:
        prepare(SIZES[against][0], Path(small))()  # a first call imports and fills caches
        act, seconds = prepare(x, Path(folder)), []
        gc.collect()
        libc.malloc_trim(0)  # else the act would use memory that the preparation has left
        status.with_name("clear_refs").write_text("5")  # the peak starts anew
        held = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
        while len(seconds) < 2 or sum(seconds) < 0.3:
            began = time.process_time()
            act()
            seconds.append(time.process_time() - began)
        return min(seconds), (int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - held) / 1024


def apart(work: str, against: str, x: int) -> tuple[float, float]:
    """`measure` in a process of its own: a fork, since importing torch takes longer than most works."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(measure, work, against, x).result()


def measure_all(sizes: dict[str, list[int]], repeats: int) -> pd.DataFrame:
    """Columns work, against, x, seconds, memory_mb: medians of ``repeats`` processes, one after another."""
    # All sizes once, then all again: what disturbs the machine for a minute meets one repeat of each.
    keys = [(*key, x) for _ in range(repeats) for key in WORKS for x in sizes[key[1]]]
    columns = ["work", "against", "x", "seconds", "memory_mb"]
    table = pd.DataFrame([(*key, *apart(*key)) for key in keys], columns=columns)
    return table.groupby(columns[:3], sort=False, as_index=False).median()


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Columns work, against, slope (of least squares over the larger half of the sizes, two at least), allowed."""
    rows = []
    for (work, against), part in table.groupby(["work", "against"], sort=False):
        part = part.nlargest(max(2, (len(part) + 1) // 2), "x")
        rows.append((work, against, np.polyfit(np.log(part["x"]), np.log(part["seconds"]), 1)[0], ALLOWED[against]))
    return pd.DataFrame(rows, columns=["work", "against", "slope", "allowed"])


def judge(fitted: pd.DataFrame) -> None:
    """Raises: SystemExit: a slope exceeds what is allowed; the message names the work."""
    if len(steep := fitted[fitted["slope"] > fitted["allowed"]]):
        raise SystemExit(f"cost grows too steeply:\n{steep.round(2).to_string(index=False)}")


def draw(table: pd.DataFrame, fitted: pd.DataFrame) -> Figure:
    """Seconds above, memory below, against one size in each column; memory below a megabyte is noise, and left out."""
    with plt.rc_context(figures._STYLE | {"xtick.minor.bottom": False, "figure.constrained_layout.use": True}):
        fig, axes = plt.subplots(3, len(SIZES), figsize=(15, 9), sharey="row", height_ratios=[3, 2, 1])
        plt.setp(axes[:2].ravel(), xscale="log", yscale="log")
        for (upper, lower, key), against in zip(axes.T, SIZES, strict=True):
            for row, look in zip(fitted[fitted["against"] == against].itertuples(), figures._LOOKS, strict=False):
                x, seconds, mb = table.loc[table["work"] == row.work, ["x", "seconds", "memory_mb"]].to_numpy().T
                upper.plot(x, seconds, **look | {"linewidth": 1.5}, label=f"{row.slope:.2f}  {row.work}")
                half = x[len(x) // 2 :]
                upper.plot(half, seconds[-1] * half / x[-1], color="0.6", linewidth=1, zorder=0)
                lower.plot(x, np.where(mb < 1, np.nan, mb), **look | {"linewidth": 1.5})
            plt.setp([upper, lower], xticks=x, xticklabels=[f"{n / 1000:g}k" if n >= 1000 else f"{n:g}" for n in x])
            lower.set_xlabel(f"{against}, log")
            key.axis("off")
            key.legend(*upper.get_legend_handles_labels(), loc="upper center", title="slope of seconds", frameon=False)
        axes[0, 0].set_ylabel("CPU seconds, log")
        axes[1, 0].set_ylabel("peak memory (MB, from 1 up), log")
        fig.suptitle("How cost grows: along grey (slope 1) twice as much costs twice as much; flatter is less")
    return fig


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes, once; slopes are not judged")
    parser.add_argument("--out", type=Path, default=Path("figures/bench"), help="folder of the tables and the figure")
    options = parser.parse_args(arguments)
    sizes = {against: x[:2] if options.quick else x for against, x in SIZES.items()}
    fitted = slopes(table := measure_all(sizes, repeats=1 if options.quick else 3))
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "growth.csv", index=False, float_format="%.4g")
    fitted.to_csv(options.out / "growth_slopes.csv", index=False, float_format="%.3g")
    draw(table, fitted).savefig(options.out / "growth.png", dpi=150)
    print(fitted.round(2).to_string(index=False))
    if not options.quick:
        judge(fitted)


if __name__ == "__main__":
    main()
