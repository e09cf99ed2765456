"""Real steps of a study's towers at full size, with random weights and made-up rows, on whatever device is here.

python tests/paper_scale.py [config/paper.yaml] [--method convirt] [--batch 1024 --chunk 64] [--out FILE.csv]

Prints items per second, memory, the share of the machine's measured matrix-multiply ceiling, and the hours that all
adaptations of the method in the study would take at that rate. `make plan` estimates; this measures.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from icssl_lib.adapt import Batch, Towers, make_accelerator, precision_here
from icssl_lib.config import load_config
from icssl_lib.encoders import TextTower, VisionTower
from icssl_lib.fast import fast
from icssl_lib.graphs import Replay, can_capture
from icssl_lib.methods import METHODS
from icssl_lib.plan import adapt_steps, data_of, make_backbone
from icssl_lib.scale import WholeBatch


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of ten square matrix products."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        synchronise(device)
        started = time.perf_counter()
        a @ a
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default="config/paper.yaml")
    parser.add_argument("--method", default="convirt")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0, help="go on for so long")
    parser.add_argument("--batch", type=int, help="default: the study's")
    parser.add_argument("--chunk", type=int, help="gradient caching: rows at a time")
    parser.add_argument("--tokens", type=int, default=16, help="of each title")
    parser.add_argument("--compile", action="store_true", help="layers go through torch.compile")
    parser.add_argument("--precision", choices=["no", "auto", "bf16"], help="default: the study's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="a CSV that the row is added to, in the place of one like it")
    options = parser.parse_args()

    study = load_config(options.config)
    asked = options.precision or study.runtime.precision
    update = {"device": options.device, "precision": asked, "threads": torch.get_num_threads()}
    runtime = study.runtime.model_copy(update=update)
    accelerator, precision = make_accelerator(runtime), precision_here(runtime)
    device, config = accelerator.device, study.adapt
    n = options.batch or config.batch_size
    text, vision = make_backbone(study, "text"), None
    text = TextTower(text, study.text.pooling, config.projection_dim, config.projection_depth)
    if METHODS[options.method].pictures != "none":
        vision = VisionTower(make_backbone(study, "vision"), config.projection_dim, config.projection_depth)
    towers = Towers(text, vision).to(device).train()
    optimizer = torch.optim.AdamW(towers.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    batch = {"input_ids": torch.randint(1000, 20000, (n, options.tokens)), "groups": torch.arange(n)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if vision:
        shape = (n, study.vision.image_size, study.vision.image_size, 3)
        batch["images"] = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def step(
        images: torch.Tensor | None = None, groups: torch.Tensor | None = None, **tokens: torch.Tensor
    ) -> torch.Tensor:
        whole = WholeBatch(towers, options.chunk, accelerator)
        with accelerator.autocast():
            loss = METHODS[options.method].loss(whole, Batch(tokens, images, groups), config)
        whole.backward(loss)
        return loss

    def learn(run: Callable[..., torch.Tensor], rows: int = n) -> float:
        loss = run(**{name: x[:rows] for name, x in batch.items()})
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    few = min(n, 8)  # counted on few rows: under the counter gradients of chunks pile up in memory
    with FlopCounterMode(display=False) as counter, fast(towers, study.runtime.fast) as packing:
        counted = Replay(step, towers.parameters(), packing, device, enabled=False)  # what is compiled is not counted
        losses = [learn(counted, few)]
    seconds, began = [], time.perf_counter()
    with fast(towers, study.runtime.fast, options.compile) as packing:
        capturable = options.chunk is None and can_capture(runtime, accelerator)
        replay = Replay(step, towers.parameters(), packing, device, capturable)
        losses += [learn(replay) for _ in range(2 if capturable else 0)]  # the second is recorded
        while len(seconds) < options.steps or time.perf_counter() - began < options.seconds:
            started = time.perf_counter()
            losses.append(learn(replay))
            synchronise(device)
            seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    if not all(map(torch.isfinite, map(torch.tensor, losses))):
        raise SystemExit(f"a loss is not finite: {losses}")
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    best = ceiling(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    rate = counter.get_total_flops() * n / few / median
    hours = 0.0
    for name in study.datasets:
        steps, size = adapt_steps(study, data_of(name, study, Path("runs") / study.study).pairs)
        hours += len(study.seeds) * steps * size / n * median / 3600
    row = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "study": study.study,
        "method": options.method,
        "precision": precision,
        "batch": n,
        "chunk": options.chunk or "",
        "compiled": options.compile,
        "parameters_m": round(sum(p.numel() for p in towers.parameters()) / 1e6),
        "steps": len(seconds),
        "seconds_per_step": round(median, 4),
        "items_per_s": round(n / median, 2),
        "memory_gb": round(peak / 1e9, 2),
        "tflops": round(rate / 1e12, 3),
        "gemm_tflops": round(best / 1e12, 3),
        "share_of_ceiling": round(rate / best, 3),
        "hours_of_study": round(hours, 1),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
    }
    print(json.dumps(row, indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows = pd.DataFrame([row])
        if options.out.exists():
            what = ["device", "study", "method", "precision", "batch", "chunk", "compiled"]
            rows = pd.concat([pd.read_csv(options.out), rows]).drop_duplicates(what, keep="last")
        rows.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
