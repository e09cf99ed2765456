"""What does each part of the fast path gain? A training step with it, and one without, in turn.

    .venv/bin/python benchmarks/fast_paths.py [--path NAME ...] [--model NAME ...] [--rounds 20]

Models have random weights, and batches 32 random titles of 4 to 36 tokens, so nothing has to be fetched. A step is
forward, backward and optimiser on one thread, in a process with the memory settings of a study (`dag.MALLOC`). It is
timed by the CPU seconds of its process, so other programs on the machine matter little. low and high: the 10% and 90%
quantiles of the ratio in a pair of steps. A part is worth its code from a ratio of 1.15 on; rows of figures/bench/
fast_paths.csv whose path is not in `WITHOUT` are of parts that gained less, and are gone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, BertModel

from icssl_lib import losses
from icssl_lib.dag import MALLOC
from icssl_lib.encoders import TextTower, VisionTower
from icssl_lib.fast import unpad
from icssl_lib.runs import machine

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SHAPES = {"MiniLM-L6": MINILM, "BERT-base": {}, "MiniLM-L6, 250,002 words": MINILM | {"vocab_size": 250_002}}
BATCH, CLASSES, EDGE = 32, 100, 112
Step = Callable[[nn.Module], Tensor]


def titles() -> dict[str, Tensor]:
    """input_ids and attention_mask (BATCH, T), padded to the longest title."""
    lengths = torch.randint(4, 37, (BATCH, 1))
    mask = (torch.arange(int(lengths.max())) < lengths).long()
    return {"input_ids": torch.randint(1000, 30_000, mask.shape) * mask, "attention_mask": mask}


def text(shape: str) -> TextTower:
    return TextTower(BertModel(BertConfig(**SHAPES[shape])), "mean", 768, 2)


def vision(edge: int = EDGE) -> VisionTower:
    model = timm.create_model("vit_tiny_patch16_224", img_size=edge, num_classes=0)
    return VisionTower(model, 768, 2, size=edge)


def pictures() -> Tensor:
    return torch.randint(0, 256, (BATCH, EDGE, EDGE, 3), dtype=torch.uint8)


def bf16(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(pictures()).float().square().mean()


def simcse(model: nn.Module) -> Tensor:
    rows = model(**{name: x.repeat_interleave(2, dim=0) for name, x in titles().items()})
    return losses.simcse(rows[0::2], rows[1::2], 0.1)


def convirt(model: nn.Module) -> Tensor:
    return losses.convirt(model["text"](**titles()), model["vision"](pictures()), 0.1, 0.75)


def finetuning(model: nn.Module) -> Tensor:
    return cross_entropy(model(**titles()).logits, torch.randint(CLASSES, (BATCH,)))


def classifier(shape: str) -> nn.Module:
    return BertForSequenceClassification(BertConfig(**SHAPES[shape], num_labels=CLASSES))


# Each name to how a model is built and what its loss is.
WORK: dict[str, tuple[Callable[[], nn.Module], Step]] = {
    **{f"SimCSE, {shape}": (partial(text, shape), simcse) for shape in SHAPES},
    **{f"fine-tuning, {shape}": (partial(classifier, shape), finetuning) for shape in SHAPES},
    "ConVIRT, MiniLM-L6 + ViT-Ti 112 px": (
        lambda: nn.ModuleDict({"text": text("MiniLM-L6"), "vision": vision()}),
        convirt,
    ),
    **{f"ViT-Ti {edge} px, bf16": (partial(vision, edge), bf16) for edge in (EDGE, 2 * EDGE)},
}


USUAL = ["SimCSE, MiniLM-L6", "fine-tuning, MiniLM-L6"]
# Each part to what a step without it runs in.
WITHOUT: dict[str, Callable[[], AbstractContextManager]] = {
    "all of them": nullcontext,
    "no padding in linear layers": partial(mock.patch.object, unpad, "UNPADDED", set()),
}
# The last two are not of a study; timm reads the last, which in a study follows the precision.
SETTINGS = MALLOC | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "TIMM_FUSED_ATTN": "0"}
ENVIRONMENT = {  # parts that are variables of a process
    "pages of 2 MB": {"GLIBC_TUNABLES"},
    "memory kept": set(MALLOC),
    "pictures without the fused kernel": {"TIMM_FUSED_ATTN"},
}


def pairs(path: str, work: str, rounds: int) -> Iterator[tuple[float, float]]:
    """CPU seconds of a step without the part and of one with it; the first two pairs warm up."""
    torch.manual_seed(0)
    build, loss = WORK[work]
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def seconds(without: bool) -> float:
        with WITHOUT[path]() if without else nullcontext():
            with unpad.fast(model, enabled=not (without and path == "all of them")):
                started = time.process_time()
                loss(model).backward()
                optimizer.step()
                optimizer.zero_grad()
                return time.process_time() - started

    for number in range(rounds + 2):
        torch.manual_seed(number)
        first = seconds(number % 2 == 0)
        torch.manual_seed(number)  # the same titles
        second = seconds(number % 2 == 1)
        if number >= 2:
            yield (first, second) if number % 2 == 0 else (second, first)


def measured(path: str, work: str, rounds: int) -> np.ndarray:
    """(rounds, 2) seconds without and with, from processes of their own."""

    def child(part: str, rounds: int, absent: set[str] = frozenset()) -> np.ndarray:
        settings = {name: value for name, value in SETTINGS.items() if name not in absent}
        rest = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        command = [sys.executable, sys.argv[0], "--worker", "--path", part, "--model", work, "--rounds", str(rounds)]
        found = subprocess.run(command, env=rest | settings, check=True, stdout=subprocess.PIPE, text=True).stdout
        return np.array(json.loads(found))

    if path not in ENVIRONMENT:
        return child(path, rounds)
    steps, rows = 4, []
    for _ in range(max(5, rounds // steps)):  # a step that is there on both sides of "all of them"
        rows.append([np.median(child("all of them", steps, absent)[:, 1]) for absent in (ENVIRONMENT[path], set())])
    return np.array(rows)


def row_of(seconds: np.ndarray) -> dict[str, float]:
    ratios = seconds[:, 0] / seconds[:, 1]
    without, with_ = np.median(seconds, axis=0)
    low, high = np.quantile(ratios, [0.1, 0.9])
    return {"without_s": without, "with_s": with_, "ratio": without / with_, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", nargs="*", default=[*WITHOUT, *ENVIRONMENT], choices=[*WITHOUT, *ENVIRONMENT])
    parser.add_argument("--model", nargs="*", default=USUAL, choices=list(WORK))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("figures/bench/fast_paths.csv"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        print(json.dumps(list(pairs(options.path[0], options.model[0], options.rounds))))
        return
    about = machine()
    where = f"{about['cpu']} ({about['instructions']}), 1 thread"
    for path in options.path:
        for model in options.model:
            seconds = measured(path, model, options.rounds)
            for name, column in zip(("without", "with"), seconds.T, strict=True):
                smallest, median, largest = np.quantile(column, [0, 0.5, 1])
                print(f"{path}, {model}: {name} {smallest:.3f} {median:.3f} {largest:.3f} s", flush=True)
            row = {"machine": where, "path": path, "model": model} | row_of(seconds)
            print(f"  {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})", flush=True)
            keys = ["machine", "path", "model"]
            table = pd.DataFrame([row])
            if options.out.is_file():
                table = pd.concat([pd.read_csv(options.out), table]).drop_duplicates(keys, keep="last")
            options.out.parent.mkdir(parents=True, exist_ok=True)
            table.round(4).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
