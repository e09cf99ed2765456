"""How cost grows: seconds against products, classes, batch size and title length; too steep a slope fails.

    make bench                                             figures/bench/growth*.csv: some minutes, on one core
    benchmarks/growth.py --quick --out /tmp/growth         the smallest sizes: that it runs; judges nothing

`make bench` lets glibc keep what is freed: else large arrays get new pages at each call, which would pass for growth.

The library's own functions, on made-up products and random weights, each in a fork of this process (Linux), in CPU
seconds of one thread. Where twice as much costs twice as much, the slope of log(seconds) against log(x) is 1; it is
fitted to the larger half of the sizes, where fixed cost matters least.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from icssl_lib import catalogue, losses, metrics
from icssl_lib.config import TableSource
from icssl_lib.encoders import TextTower
from icssl_lib.fast.unpad import fast

SIZES = {
    "products": [1000, 3000, 10_000, 30_000, 100_000, 200_000],
    "classes": [10, 30, 100, 300, 1000, 3000, 10_000],
    "batch size (titles)": [8, 16, 32, 64, 128, 256],
    "title length (tokens)": [4, 8, 16, 32, 64],
}
# Linear work leaves a CPU's caches on the way up; similarity in a batch and attention in a title are quadratic.
ALLOWED = {"products": 1.25, "classes": 1.15, "batch size (titles)": 1.5, "title length (tokens)": 1.5}
BERT = {"vocab_size": 3000, "num_hidden_layers": 2, "num_attention_heads": 4}
Act = Callable[[], object]  # what is measured


def made_up(n: int, classes: int = 953) -> pd.DataFrame:
    """``n`` items: id, label (a long tail), predicted (70% are right), title of 4 to 14 words."""
    rng, weights = np.random.default_rng(0), 1 / np.arange(3, classes + 3)
    drawn = np.append(np.arange(classes), rng.choice(classes, n, p=weights / weights.sum()))[:n]
    label = np.array([f"Class {k}" for k in range(classes)], object)[drawn]
    words = np.char.mod("word%x", np.minimum(rng.zipf(1.3, (n, 14)), 3000))
    titles = [" ".join(row[:length]) for row, length in zip(words, rng.integers(4, 15, n), strict=True)]
    predicted = np.where(rng.random(n) < 0.7, label, rng.permutation(label))
    return pd.DataFrame({"id": np.arange(n).astype(str), "label": label, "predicted": predicted, "title": titles})


def ingest(n: int, folder: Path) -> Act:
    made_up(n).to_csv(folder / "products.csv", index=False)
    source = TableSource(source="table", table=folder / "products.csv", id="id", image=None)
    return lambda: catalogue.ingest("made up", source, 32, 0, folder / "catalogue", progress=False)


def bootstrap(n: int, _: Path) -> Act:
    items = made_up(n // 10).assign(dataset="made up", fraction=1.0, seed=0)
    both = pd.concat([items.assign(method="origin"), items.assign(method="simcse")])
    return lambda: metrics.paired_bootstrap(both, [("simcse", "origin")], {}, ["macro_f1"])


def scores(classes: int, _: Path) -> Act:
    label, predicted = made_up(50_000, classes)[["label", "predicted"]].T.to_numpy()
    return lambda: metrics.scores(label, predicted, *catalogue.head_tail(pd.Series(label).value_counts()))


def step_of(model: torch.nn.Module, n: int, length: int, loss: Callable) -> Act:
    """A training step on n titles of one length, on the fast path."""
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    tokens = {"input_ids": torch.randint(3000, (n, length)), "attention_mask": torch.ones(n, length, dtype=torch.long)}

    def step() -> None:
        optimizer.zero_grad()
        with fast(model):
            loss(tokens).backward()
        optimizer.step()

    return step


def classify(classes: int, _: Path) -> Act:
    model = BertForSequenceClassification(BertConfig(**BERT, hidden_size=32, intermediate_size=128, num_labels=classes))
    target = torch.randint(classes, (32,))
    return step_of(model, 32, 16, lambda tokens: torch.nn.functional.cross_entropy(model(**tokens).logits, target))


def simcse(n: int, length: int) -> Act:
    tower = TextTower(BertModel(BertConfig(**BERT, hidden_size=128, intermediate_size=512)), "mean", 128, 2)
    return step_of(tower, n, length, lambda tokens: losses.simcse(tower(**tokens), tower(**tokens), 0.1))


# By work and what it is measured against: makes the act of a size, in an empty folder.
WORKS: dict[tuple[str, str], Callable[[int, Path], Act]] = {
    ("Ingest of a table", "products"): ingest,
    ("Bootstrap of macro-F1 on Test", "products"): bootstrap,
    ("Scores of 50,000 predictions", "classes"): scores,
    ("Classifier step, width 32", "classes"): classify,
    ("SimCSE step, 16 tokens", "batch size (titles)"): lambda n, _: simcse(n, 16),
    ("SimCSE step, 32 titles", "title length (tokens)"): lambda length, _: simcse(32, length),
}


def measure(work: str, against: str, x: int) -> float:
    """Seconds (of the fastest call) at size x, in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        act, seconds = WORKS[work, against](x, Path(folder)), []
        while len(seconds) < 2 or sum(seconds) < 0.3:
            began = time.process_time()
            act()
            seconds.append(time.process_time() - began)
    return min(seconds)


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Columns work, against, slope (of least squares over the larger half of the sizes, two at least), allowed."""
    rows = []
    for (work, against), part in table.groupby(["work", "against"], sort=False):
        x, seconds = np.log(part.nlargest(max(2, (len(part) + 1) // 2), "x")[["x", "seconds"]]).to_numpy().T
        rows.append((work, against, np.polyfit(x, seconds, 1)[0], ALLOWED[against]))
    return pd.DataFrame(rows, columns=["work", "against", "slope", "allowed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes, once; slopes are not judged")
    parser.add_argument("--out", type=Path, default=Path("figures/bench"), help="folder of the tables")
    options = parser.parse_args()
    sizes = {against: x[:2] if options.quick else x for against, x in SIZES.items()}
    rows, columns = [], ["work", "against", "x", "seconds"]
    for key in [(*work, x) for _ in range(1 if options.quick else 3) for work in WORKS for x in sizes[work[1]]]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            rows.append((*key, pool.submit(measure, *key).result()))
    table = pd.DataFrame(rows, columns=columns).groupby(columns[:3], sort=False, as_index=False).median()
    fitted = slopes(table)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "growth.csv", index=False, float_format="%.4g")
    fitted.to_csv(options.out / "growth_slopes.csv", index=False, float_format="%.3g")
    print(fitted.round(2).to_string(index=False))
    steep = fitted[fitted["slope"] > fitted["allowed"]]
    if len(steep) and not options.quick:
        raise SystemExit(f"cost grows too steeply:\n{steep.round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
