"""How short could a study of the embedded catalogue be, if nothing in its trainings took time but matrix products?

    .venv/bin/python tests/quick_floor.py config/quick.yaml runs/quick [--out figures/bench-half/quick_floor.csv]

One training of each kind runs on one thread, as a job does: by the clock, and under torch's profiler, which tells the
seconds of its matrix products. Per kind, from the executed notebooks of the finished run, the core-seconds of all its
trainings, and how many of them are products; and the run's minutes, as they were and if nothing else were left. That is
a bound for every faster path in this precision: it can drop padding, which is dropped already, and make the rest
cheaper, but not the products.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from profile_study import cells, profile
from torch.profiler import ProfilerActivity
from torch.profiler import profile as traced

from icssl_lib import adapt, finetune, pretrain
from icssl_lib.catalogue import open_catalogue
from icssl_lib.config import load_config
from icssl_lib.images import written_whole

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}  # what linear layers and attention come to


def share_of_products(work: Callable[[], Any]) -> float:
    """Of the seconds that ``work`` takes, those in matrix products, in [0, 1]."""
    work()  # what is imported and opened once
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    with traced(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    inside = sum(event.self_cpu_time_total for event in profiler.key_averages() if event.key in PRODUCTS)
    return inside / 1e6 / seconds


def trainings(config: Path, out: Path, scratch: Path) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Kind to its notebooks (a glob), and one training of the kind on a smaller corpus or the first data set."""
    study = load_config(config)
    smaller = study.pretrain.model_copy(update={"titles": study.pretrain.titles // 8, "pictures": 2500})
    study = study.model_copy(update={"pretrain": smaller})
    name = next(iter(study.datasets))
    catalogue, encoder = open_catalogue(out / "catalogues" / name), str(out / "pretrained" / "text")
    return {
        "masked LM": ("00_pretrain-text*", lambda: pretrain.pretrain_text(study, scratch / "text", False)),
        "ViT": ("00_pretrain-vision*", lambda: pretrain.pretrain_vision(study, scratch / "vision", False)),
        "SimCSE": ("02_adapt-*-simcse-*", lambda: adapt.adapt("simcse", catalogue, study, 0, scratch, False)),
        "ConVIRT": ("02_adapt-*-convirt*", lambda: adapt.adapt("convirt", catalogue, study, 0, scratch, False)),
        "classifier": ("03_finetune-*", lambda: finetune.classify("origin", encoder, catalogue, study, 0.5, 0)),
    }


def floor(config: Path, out: Path) -> pd.DataFrame:
    """One row per kind of training, one for all else, one for all: jobs, seconds, products (both core-seconds)."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "pretrained").symlink_to((out / "pretrained").resolve())
        for kind, (notebooks, work) in trainings(config, out, scratch).items():
            seconds = [cells(path)[1] for path in (out / "notebooks").glob(f"{notebooks}.ipynb")]
            share = share_of_products(work)
            rows.append([kind, len(seconds), sum(seconds), share * sum(seconds), share])
            print(f"{kind}: {share:.2f} of a training are matrix products", flush=True)
    table = pd.DataFrame(rows, columns=["training", "jobs", "seconds", "products", "share"])
    stages = profile(out)
    rest = stages.seconds.sum() - table.seconds.sum()
    table.loc[len(table)] = ["all else", stages.jobs.sum() - table.jobs.sum(), rest, rest, 1.0]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path, help="a finished run of it")
    parser.add_argument("--out", type=Path, help="a CSV, for the documentation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = floor(options.config, options.folder)
    wall = json.loads((options.folder / "wall.json").read_text())
    # The run's own minutes, less what is no product: cores were idle now and then, and would be as long.
    shorter = wall["seconds"] - (table.seconds - table.products).sum() / wall["cores"]
    minutes = wall["seconds"] / 60, shorter / 60
    table.loc[len(table)] = ["the run, in minutes", table.jobs.sum(), *minutes, shorter / wall["seconds"]]
    table = table.round({"seconds": 2, "products": 2, "share": 2})
    print(table.to_string(index=False))
    if options.out:
        with written_whole(options.out) as part:
            table.to_csv(part, index=False)


if __name__ == "__main__":
    main()
