"""Where classifier and adaptation meet: which head, and how it begins. Dev alone is read; rows go to heads.csv.

python benchmarks/heads.py config/hm.yaml --seeds 0 1               (rows that are there are not made)
python benchmarks/heads.py config/hm.yaml --seeds 0 1 2 3 4 --ways first-drawn-usual mean-probe-usual ...

head: `first` is transformers' own (first token, pooler, linear), `mean` a linear layer on the mean of the tokens, `met`
transformers' own after an adaptation that went through its pooler (for `origin` the same as `first`, so left out).
begin: `drawn` anew, or `probe`: logistic regression on what the layer reads of the frozen encoder (Kumar et al., 2022).
body: `usual`, `few` (a third of the steps) or `slow` (a quarter of the rate for all but the last layer).

Rule, written before any number was seen: the best is the highest mean of Dev accuracy over `origin` and ConVIRT, the
fractions and the seeds; of those within .005 of it the one that comes first in HEADS x BEGINS x BODIES. To save hours,
ways that were more than .02 behind the best for `origin` after two seeds got neither ConVIRT nor further seeds (added
when `origin`'s two seeds had been seen), those more than .01 behind after two seeds of both got no third one, and
fractions are 5 and 25%. By it heads.csv, of five seeds, says: mean-probe-usual. `met-probe-slow` has two seeds.
"""

import argparse
import csv
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from icssl_lib import adapt, finetune
from icssl_lib.catalogue import Catalogue, ingest, open_catalogue, train_subset
from icssl_lib.config import Run, Study, load_config
from icssl_lib.encoders import TextTower, load_text, logits, take, tokenize
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.lexical import C

ROWS = Path(__file__).with_name("heads.csv")
KEYS = ["catalogue", "encoder", "head", "begin", "body", "fraction", "seed"]
HEADS, BEGINS, BODIES = ("first", "mean", "met"), ("drawn", "probe"), ("usual", "few", "slow")


class PooledTower(TextTower):
    """A text tower whose embedding is what transformers' classifier reads."""

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask).pooler_output


class MeanHead(nn.Module):
    """A linear layer on the mean of a title's tokens. Call: tokens (N, T) -> logits (N, C)."""

    def __init__(self, backbone: nn.Module, labels: int) -> None:
        super().__init__()
        self.text, self.dropout = TextTower(backbone, "mean", projection_dim=1, depth=0), nn.Dropout(0.1)
        self.classifier = nn.Linear(backbone.config.hidden_size, labels)

    def forward(self, **tokens: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.text.embed(**tokens)))


def encoder_of(study: Study, catalogue: Catalogue, encoder: str, head: str, seed: int, folder: Path) -> str:
    """The folder of the encoder that a classifier starts from, adapted once, the vision tower frozen."""
    if encoder == "origin":
        return study.text.model
    folder = folder / f"{encoder}-{'met' if head == 'met' else 'mean'}-{seed}"
    if not (folder / "config.json").is_file():
        own = study.model_copy(update={"vision": study.vision.model_copy(update={"frozen": True})})
        with mock.patch.object(adapt, "TextTower", PooledTower if head == "met" else TextTower):
            adapt.save(adapt.adapt(Run(catalogue.name, encoder, seed), catalogue, own, progress=False), folder)
    return str(folder)


def begun_by_probe(model: nn.Module, tokens: dict, target: torch.Tensor, accelerator) -> None:
    """Set the last layer to the logistic regression on what it reads of the frozen encoder."""
    layer = model.classifier
    model.classifier = nn.Identity()
    rows = finetune.outputs(model, tokens, accelerator).numpy()  # (N, H)
    model.classifier = layer
    scale = np.linalg.norm(rows, axis=1).mean()
    found, seen = LogisticRegression(C=C, max_iter=1000).fit(rows / scale, target), target.unique()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(float(found.intercept_.min()))
        layer.weight[seen] = torch.tensor(found.coef_ / scale, dtype=torch.float32)
        layer.bias[seen] = torch.tensor(found.intercept_, dtype=torch.float32)


def loss_fn(model: nn.Module, batch: dict) -> torch.Tensor:
    tokens = {name: rows for name, rows in batch.items() if name != "target"}
    return cross_entropy(logits(model, tokens).float(), batch["target"])


def dev_accuracy(study: Study, catalogue: Catalogue, encoder: str, row: dict) -> float:
    """One classifier, trained and read on Dev."""
    config, labels, seed = study.finetune, catalogue.labels, row["seed"]
    accelerator = make_accelerator(study.runtime)
    set_seed(seed)
    train, dev = train_subset(catalogue.part("train"), row["fraction"], seed), catalogue.part("dev")
    model = MeanHead(load_text(encoder)[0], len(labels)) if row["head"] == "mean" else None
    model = model or finetune.build(encoder, labels, study)[0]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokens, asked = (tokenize(tokenizer, list(part.title), study.text.max_tokens) for part in (train, dev))
    target = torch.tensor(pd.Index(labels).get_indexer(train.label))
    rates = {"usual": config.lr, "few": config.lr, "slow": config.lr / 4}
    epochs = config.steps(len(train))[0] // (3 if row["body"] == "few" else 1)
    with fast(model, study.runtime.fast):
        if row["begin"] == "probe":
            begun_by_probe(model, tokens, target, accelerator)
        body = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
        groups = [{"params": body, "lr": rates[row["body"]]}, {"params": model.classifier.parameters()}]
        optimizer = torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        generator = torch.Generator().manual_seed(seed)
        orders = (torch.randperm(len(train), generator=generator) for _ in range(epochs))
        rows = (part for order in orders for part in order.split(config.batch_size))
        batches = ((0, take(tokens, part, "cpu") | {"target": target[part]}) for part in rows)
        step = partial(adapt.plain_step, accelerator=accelerator)
        finetune.train(model, batches, loss_fn, optimizer, step)
        probability = finetune.outputs(model, asked, accelerator).softmax(-1).numpy()
    return finetune.accuracy(probability, dev, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.05, 0.25])
    every = ["-".join(way) for way in product(HEADS, BEGINS, BODIES)]
    parser.add_argument("--ways", nargs="+", default=every, choices=every)
    options = parser.parse_args()
    study = load_config(options.config)
    first = study.finetune.model_copy(update={"head": "first"})  # of those that `finetune.build` makes
    study = study.model_copy(update={"finetune": first})
    (name, source), *_ = study.datasets.items()
    folder = Path("runs/heads") / study.study
    if not (folder / name / "catalogue.json").is_file():
        ingest(name, source, study.vision.image_size, study.split_seed, folder / name)
    catalogue = open_catalogue(folder / name)
    done = pd.read_csv(ROWS)[KEYS].astype(str).agg("|".join, axis=1).tolist() if ROWS.is_file() else []
    for seed, encoder, *how in product(options.seeds, ("origin", "convirt"), HEADS, BEGINS, BODIES):
        if "-".join(how) not in options.ways:
            continue
        start = None
        for fraction in options.fractions:
            row = dict(zip(KEYS, (name, encoder, *how, fraction, seed), strict=True))
            if "|".join(map(str, row.values())) in done or (encoder, how[0]) == ("origin", "met"):
                continue
            start = start or encoder_of(study, catalogue, encoder, how[0], seed, folder)
            row["dev_accuracy"] = round(dev_accuracy(study, catalogue, start, row), 4)
            print(*row.values(), flush=True)
            new = not ROWS.is_file()
            with ROWS.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([list(row)] * new + [list(row.values())])


if __name__ == "__main__":
    main()
