"""Real steps of a study's towers at full size, with random weights and made-up rows, on whatever device is here.

python benchmarks/paper_scale.py [config/paper.yaml] [--method convirt] [--batch 1024 --chunk 64] [--out FILE.csv]

Prints items per second, memory, the share of the machine's measured matrix-multiply ceiling, and the hours that all
adaptations of the method in the study would take at that rate. `make plan` plans a whole study; this also tries other
batches and chunks, and measures memory.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from plan import products_of, trainings_of
from torch.utils.flop_counter import FlopCounterMode

from icssl_lib import adapt
from icssl_lib.config import load_config
from icssl_lib.fast.cuda_graphs import Recorded, can_capture
from icssl_lib.fast.gradcache import cached
from icssl_lib.fast.processes import make_accelerator, precision_here
from icssl_lib.fast.unpad import fast
from icssl_lib.methods import entry_of
from icssl_lib.sources.synthetic.pretrain import loadable


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of ten square matrix products."""
    n, best = 8192 if device.type == "cuda" else 2048, float("inf")
    a = torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(10):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # a GPU is waited for
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default="config/paper.yaml")
    parser.add_argument("--method", default="convirt")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, help="default: the study's")
    parser.add_argument("--chunk", type=int, help="gradient caching: rows at a time")
    parser.add_argument("--tokens", type=int, default=16, help="of each title")
    parser.add_argument("--precision", choices=["no", "auto", "bf16"], help="default: the study's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="a CSV that the row is added to, in the place of one like it")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    study = load_config(options.config)
    precision = options.precision or study.runtime.precision
    update = {"device": options.device, "precision": precision, "threads": torch.get_num_threads()}
    runtime, entry = study.runtime.model_copy(update=update), entry_of(study, options.method)
    accelerator, precision, n = make_accelerator(runtime), precision_here(runtime), options.batch
    n, device = n or study.adapt.batch_size, accelerator.device
    with tempfile.TemporaryDirectory() as folder:
        towers, _ = adapt.build(loadable(study, Path(folder)), entry)
    towers.to(device)
    batch = {"input_ids": torch.randint(1000, 20000, (n, options.tokens)), "groups": torch.arange(n)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if towers.vision:
        size = study.vision.image_size
        batch["images"] = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, device=device)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=study.adapt.lr, weight_decay=1e-8, fused=True)
    losses, spent = [], []
    plain = partial(adapt.plain_step, accelerator=accelerator)
    train = partial(adapt.train, towers, loss_fn=partial(entry.loss, config=study.adapt), optimizer=optimizer)
    few = {name: rows[:8] for name, rows in batch.items()}  # what is recorded is not counted
    with FlopCounterMode(display=False) as counter, fast(towers, runtime.fast):
        train([(0, few)], step=plain, history=losses)
    with fast(towers, runtime.fast) as packing:
        capture = options.chunk is None and can_capture(runtime, accelerator)
        step = plain if options.chunk is None else cached(accelerator, options.chunk)
        step = Recorded(step, towers.parameters(), packing, device, capture)
        train([(0, batch)] * (2 * capture), step=step, history=losses)  # the second is recorded
        train([(0, batch)] * options.steps, step=step, history=spent)
    seconds = statistics.median(np.diff([0.0, *(row[3] for row in spent)]))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    best = ceiling(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    rate = counter.get_total_flops() * n / min(n, 8) / seconds
    products = [products_of(name, study, Path("runs") / study.study) for name in study.datasets]
    trained = [job for each in products for job in trainings_of(study, each) if job[:2] == ("adapt", options.method)]
    row = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "study": study.study,
        "method": options.method,
        "precision": precision,
        "batch": n,
        "chunk": options.chunk or "",
        "parameters_m": round(sum(p.numel() for p in towers.parameters()) / 1e6),
        "steps": options.steps,
        "seconds_per_step": round(seconds, 4),
        "items_per_s": round(n / seconds, 2),
        "memory_gb": round(peak / 1e9, 2),
        "tflops": round(rate / 1e12, 3),
        "gemm_tflops": round(best / 1e12, 3),
        "share_of_ceiling": round(rate / best, 3),
        "hours_of_study": round(sum(job[3] for job in trained) * study.adapt.batch_size / n * seconds / 3600, 1),
        "first_loss": round(losses[0][2], 4),
        "last_loss": round(spent[-1][2], 4),
    }
    print(json.dumps(row, indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows = pd.DataFrame([row])
        if options.out.exists():
            what = ["device", "study", "method", "precision", "batch", "chunk"]
            rows = pd.concat([pd.read_csv(options.out), rows]).drop_duplicates(what, keep="last")
        rows.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
