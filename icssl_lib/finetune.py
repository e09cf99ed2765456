"""The supervised stage: a classifier on labelled titles (or pictures), all weights trained. Build, train, predict."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from icssl_lib import encoders
from icssl_lib.adapt import plain_step, prepared
from icssl_lib.catalogue import Catalogue
from icssl_lib.config import Study, VisionConfig
from icssl_lib.encoders import Batch, TextTower, VisionTower, logits, take, tokenize
from icssl_lib.fast.checkpoint import Checkpoint, resumable
from icssl_lib.fast.cuda_graphs import LENGTHS, Recorded, can_capture
from icssl_lib.fast.processes import local_rows, make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.remedies import balanced, second_stage

Read = Callable[[pd.DataFrame], np.ndarray]  # products to probabilities of the catalogue's labels, float64 (N, C)


@dataclass(frozen=True)
class Start:
    """What a classifier begins from."""

    encoder: str  # folder or hub name
    vision: VisionConfig | None = None
    towers: Path | None = None  # of `adapt.save`: its vision backbone takes the place of the tower's own weights


@dataclass(frozen=True)
class Task:
    """What all trainings of one classifier share. checkpoint: see `adapt.adapt`."""

    catalogue: Catalogue
    study: Study  # as its method sees it
    start: Start
    seed: int
    checkpoint: Path | None = None


class DualEncoderClassifier(nn.Module):
    """A linear layer on the pooled features of a title (``finetune.head: mean``), a picture, or both side by side. Of
    tokens (N, T) where there is a text tower, pixels uint8 (N, S, S, 3) and shown bool (N,) where there is a vision
    tower, it makes logits (N, C). A product without a picture has zeros for its picture's features."""

    def __init__(self, text: TextTower | None, vision: VisionTower | None, n_labels: int, dropout: float = 0) -> None:
        super().__init__()
        self.text, self.vision, self.dropout = text, vision, nn.Dropout(dropout)
        width = (text.backbone.config.hidden_size if text else 0) + (vision.backbone.num_features if vision else 0)
        self.classifier = nn.Linear(width, n_labels)

    def forward(self, pixels: Tensor | None = None, shown: Tensor | None = None, **tokens: Tensor) -> Tensor:
        features = [self.vision.embed(pixels) * shown[:, None]] if self.vision else []  # (N, F)
        if self.text:
            features.insert(0, self.text.embed(**tokens))  # (N, H)
        return self.classifier(self.dropout(torch.cat(features, dim=1)))


class Products:
    """What a classifier reads of products: titles where there is a tokenizer, pictures where there is a store."""

    def __init__(self, products: pd.DataFrame, tokenizer, max_tokens: int, store: np.ndarray | None) -> None:
        self.tokens = tokenize(tokenizer, list(products.title), max_tokens) if tokenizer else None
        self.rows, self.store = products.image_row.to_numpy(), store

    def batch(self, index: Tensor, multiple: int = 1) -> Batch:
        """Tensors of the products at ``index`` (n,); pixels of one without a picture are any, and not ``shown``."""
        batch = take(self.tokens, index, "cpu", multiple) if self.tokens else {}
        if self.store is not None:
            rows = self.rows[index.numpy()]
            batch |= {"pixels": torch.tensor(self.store[np.maximum(rows, 0)]), "shown": torch.tensor(rows >= 0)}
        return batch


@dataclass(frozen=True)
class Reader:
    """A classifier and how it is shown products (see `Products`). Call: `Read`."""

    model: nn.Module
    tokenizer: object
    store: np.ndarray | None
    study: Study
    accelerator: Accelerator

    def products(self, table: pd.DataFrame) -> Products:
        return Products(table, self.tokenizer, self.study.text.max_tokens, self.store)

    def __call__(self, table: pd.DataFrame) -> np.ndarray:
        with fast(self.model, self.study.runtime.fast):
            return predict(self.model, self.products(table), len(table), self.accelerator)


def build(kind: str, start: Start, labels: list[str], study: Study) -> nn.Module:
    """A classifier with a last layer drawn anew. kind: "finetune" reads titles, "image" pictures, "joint" both."""
    if kind == "finetune" and study.finetune.head == "transformers":
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        return AutoModelForSequenceClassification.from_pretrained(start.encoder, dtype=torch.float32, **names)
    text = vision = None
    if kind != "image":
        pooling = "mean" if kind == "finetune" else study.text.pooling
        text = TextTower(encoders.load_text(start.encoder)[0], pooling, projection_dim=1, depth=0)
    if kind != "finetune":
        vision = VisionTower(encoders.load_vision(start.vision), 1, depth=0, size=start.vision.image_size)
        if start.towers:
            kept, prefix = load_file(start.towers), "vision.backbone."
            adapted = {name.removeprefix(prefix): w for name, w in kept.items() if name.startswith(prefix)}
            vision.backbone.load_state_dict(adapted)
    return DualEncoderClassifier(text, vision, len(labels), dropout=0.1 if kind == "finetune" else 0)


def train(
    model: nn.Module, batches: Iterable[tuple[int, Batch]], loss_fn: Callable[[nn.Module, Batch], Tensor],
    optimizer: Optimizer, schedule: LRScheduler, step: Callable,
) -> None:  # fmt: skip
    """Train a classifier in place, one step for each batch; arguments as of `adapt.train`."""
    loss = torch.zeros(())
    model.train()
    for _, batch in batches:
        loss = step(model, batch, loss_fn)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"fine-tuning diverged: the loss is {loss.item()}; lower finetune.lr")


def fit(
    task: Task, train_set: pd.DataFrame, kind: str = "finetune", soft: np.ndarray | None = None, beside: str = ""
) -> Reader:
    """Cross-entropy on all weights with Adam (Chen & Chou, 2022, section 4) on labelled products, each with a picture
    for "image". kind: see `build`. soft: a teacher's probabilities of the SSL part's products, float32 (M, C), trained
    on beside the labels. beside: tells this training's checkpoint from the task's others."""
    study, config, labels = task.study, task.study.finetune, task.catalogue.labels
    accelerator = make_accelerator(study.runtime)
    set_seed(task.seed)
    tokenizer = None if kind == "image" else AutoTokenizer.from_pretrained(task.start.encoder)
    model = build(kind, task.start, labels, study).to(accelerator.device)
    read = Reader(model, tokenizer, None if kind == "finetune" else task.catalogue.images, study, accelerator)
    target = torch.tensor(pd.Index(labels).get_indexer(train_set.label))  # (N,)
    # Logit adjustment (Menon et al., 2021), (C,): one more of each class, so that none is impossible
    prior = (target.bincount(minlength=len(labels)) + 1).log().to(accelerator.device)
    if soft is not None:
        train_set = pd.concat([train_set, task.catalogue.part("ssl").drop(columns="label")], ignore_index=True)
        target = torch.cat([one_hot(target, len(labels)).float(), torch.from_numpy(soft)])  # (N + M, C)
    stages = 2 if config.imbalance == "two_stage" else 1
    epochs, steps = config.steps(len(train_set))  # of a stage
    optimizer, schedule = prepared(Adam, model, config, stages * steps, accelerator)
    begun = []  # the second stage
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "begun": begun}
    path = task.checkpoint.with_stem(task.checkpoint.stem + beside) if task.checkpoint else None
    checkpoint = Checkpoint(path, study.runtime.checkpoint_minutes, accelerator, **parts)

    def order(epoch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        if epoch >= epochs:
            second_stage(model, optimizer, task.seed, begun)
        even = config.imbalance == "class_balanced" or epoch >= epochs
        rows = balanced(target, generator) if even else torch.randperm(len(train_set), generator=generator)
        return rows.split(config.batch_size)

    rows = resumable(stages * epochs, order, torch.Generator().manual_seed(task.seed), checkpoint)
    capture = kind == "finetune" and stages == 1 and can_capture(study.runtime, accelerator)
    batches = _batches(rows, read.products(train_set), target, accelerator, LENGTHS if capture else 1)
    loss_fn = partial(_loss, prior=prior if config.imbalance == "logit_adjusted" else 0)
    with fast(model, study.runtime.fast) as packing:
        step = partial(plain_step, accelerator=accelerator)
        step = Recorded(step, model.parameters(), packing, accelerator.device, capture)
        train(model, batches, loss_fn, optimizer, schedule, step)
    checkpoint.remove()
    return read


def _batches(
    rows: Iterable[tuple[int, Tensor]], products: Products, target: Tensor, accelerator: Accelerator, multiple: int
) -> Iterator[tuple[int, Batch]]:
    """From a batch's rows to the tensors of this process's share of them, and its weight in the batch's mean."""
    for epoch, index in rows:
        own = local_rows(index, accelerator)
        weight = torch.tensor(len(own) / len(index))
        own = own if len(own) else index[:1]  # a process without a row goes along, at weight 0
        yield epoch, products.batch(own, multiple) | {"target": target[own], "weight": weight}


def _loss(model: nn.Module, batch: Batch, prior: Tensor | int) -> Tensor:
    """Cross-entropy in nats of logits plus ``prior`` (C,)."""
    scores = logits(model, {name: x for name, x in batch.items() if name not in ("target", "weight")}).float()
    return cross_entropy(scores + prior, batch["target"]) * batch["weight"]


@torch.inference_mode()
def predict(model: nn.Module, products: Products, n: int, accelerator: Accelerator) -> np.ndarray:
    """Class probabilities of ``n`` products in their order: float64 (n, C)."""
    model.eval()

    def read(rows: Tensor) -> Tensor:
        batch = {name: x.to(accelerator.device) for name, x in products.batch(rows).items()}
        return logits(model, batch).float().softmax(-1)

    lengths = products.tokens["attention_mask"].sum(dim=1) if products.tokens else torch.zeros(n)
    with accelerator.autocast():
        return encoders.by_length(lengths, read).double().numpy()


def accuracy(probability: np.ndarray, products: pd.DataFrame, labels: list[str]) -> float:
    """Share of products whose most probable label is theirs. probability: (N, C)."""
    return float(np.mean(np.array(labels)[probability.argmax(1)] == products.label.to_numpy()))
