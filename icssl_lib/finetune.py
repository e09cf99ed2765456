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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

from icssl_lib import encoders
from icssl_lib.adapt import plain_step, prepared
from icssl_lib.catalogue import Catalogue
from icssl_lib.config import Study, VisionConfig
from icssl_lib.encoders import Batch, TextTower, logits, take, tokenize
from icssl_lib.fast.checkpoint import Checkpoint, resumable
from icssl_lib.fast.cuda_graphs import LENGTHS, Recorded, can_capture
from icssl_lib.fast.processes import local_rows, make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.lexical import regression
from icssl_lib.remedies import balanced

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


@dataclass(frozen=True)
class Reader:
    """A title classifier and its tokenizer. Call: `Read`."""

    model: nn.Module
    tokenizer: object
    study: Study
    accelerator: Accelerator

    def tokens(self, products: pd.DataFrame) -> Batch:
        return tokenize(self.tokenizer, list(products.title), self.study.text.max_tokens)

    def __call__(self, products: pd.DataFrame) -> np.ndarray:
        with fast(self.model, self.study.runtime.fast):
            return outputs(self.model, self.tokens(products), self.accelerator).softmax(-1).double().numpy()

    def save(self, folder: Path) -> None:
        """As a folder that transformers loads or, of a pooled head, SentenceTransformer."""
        self.tokenizer.model_max_length = self.study.text.max_tokens
        pooled = [self.model.pooling, self.model.projection] if isinstance(self.model, TextTower) else []
        encoders.save_pretrained(self.model.backbone if pooled else self.model, self.tokenizer, folder, *pooled)


def named_classes(labels: list[str]) -> dict[str, dict]:
    """How a model's configuration names its outputs."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def build(encoder: str, labels: list[str], study: Study) -> tuple[nn.Module, object]:
    """A classifier of titles, whatever ``encoder`` held its last layer is new, and a tokenizer. Raises: ModelError."""
    with torch.random.fork_rng():  # the last layer alone is drawn
        backbone, tokenizer = encoders.load_text(encoder, study.text.max_tokens)
    if study.finetune.head == "pooled":
        backbone.config.update(named_classes(labels))
        tower = TextTower(backbone, study.text.pooling, len(labels), depth=1)
        tower.projection.insert(0, nn.Dropout(0.1))
        return tower, tokenizer
    config = AutoConfig.from_pretrained(encoder, problem_type="single_label_classification", **named_classes(labels))
    with encoders.explained(f"text.model: no classifier with the encoder of '{encoder}'"):
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]  # LookupError: there is none
        weights = {"state_dict": backbone.state_dict(), "dtype": torch.float32}
        return kind.from_pretrained(None, config=config, **weights), tokenizer


def begin(tower: TextTower, tokens: Batch, target: Tensor, accelerator: Accelerator) -> None:
    """Make the last layer the logistic regression on titles (N, T) with a ``target`` (N,), the encoder frozen: linear
    probing, then fine-tuning (Kumar et al., 2022)."""
    head, tower.projection = tower.projection, nn.Identity()
    rows = outputs(tower, tokens, accelerator).numpy()  # (N, H)
    tower.projection, length = head, np.linalg.norm(rows, axis=1).mean()
    weight, bias = regression(rows / length, target.numpy(), head[-1].out_features)
    bias = np.maximum(bias, bias[np.isfinite(bias)].min())  # a class without a label may be learnt of
    found = {"weight": weight / length, "bias": bias}
    head[-1].load_state_dict({name: torch.tensor(x, dtype=torch.float32) for name, x in found.items()})


def train(
    model: nn.Module, batches: Iterable[tuple[int, Batch]], loss_fn: Callable[[nn.Module, Batch], Tensor],
    optimizer: Optimizer, step: Callable,
) -> None:  # fmt: skip
    """Train a classifier in place, one step for each batch; arguments as of `adapt.train`."""
    loss = torch.zeros(())
    model.train()
    for _, batch in batches:
        loss = step(model, batch, loss_fn)
        optimizer.step()
        optimizer.zero_grad()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"fine-tuning diverged: the loss is {loss.item()}; lower finetune.lr")


def fit(task: Task, train_set: pd.DataFrame) -> Reader:
    """Cross-entropy on all weights with Adam (Chen & Chou, 2022, section 4) on labelled titles."""
    study, config, labels = task.study, task.study.finetune, task.catalogue.labels
    accelerator = make_accelerator(study.runtime)
    set_seed(task.seed)
    model, tokenizer = build(task.start.encoder, labels, study)
    read = Reader(model.to(accelerator.device), tokenizer, study, accelerator)
    target = torch.tensor(pd.Index(labels).get_indexer(train_set.label))  # (N,)
    # Logit adjustment (Menon et al., 2021), (C,): one more of each class, so that none is impossible
    prior = (target.bincount(minlength=len(labels)) + 1).log().to(accelerator.device)
    tokens = read.tokens(train_set)
    if config.head == "pooled":
        begin(model, tokens, target, accelerator)
    epochs, _ = config.steps(len(train_set))
    optimizer = prepared(Adam, model, config, accelerator)
    parts = {"model": model, "optimizer": optimizer}
    checkpoint = Checkpoint(task.checkpoint, study.runtime.checkpoint_minutes, accelerator, **parts)

    def order(_: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        even = config.imbalance == "class_balanced"
        rows = balanced(target, generator) if even else torch.randperm(len(train_set), generator=generator)
        return rows.split(config.batch_size)

    rows = resumable(epochs, order, torch.Generator().manual_seed(task.seed), checkpoint)
    capture = can_capture(study.runtime, accelerator)
    batches = _batches(rows, tokens, target, accelerator, LENGTHS if capture else 1)
    loss_fn = partial(_loss, prior=prior if config.imbalance == "logit_adjusted" else 0)
    with fast(model, study.runtime.fast) as packing:
        step = partial(plain_step, accelerator=accelerator)
        step = Recorded(step, model.parameters(), packing, accelerator.device, capture)
        train(model, batches, loss_fn, optimizer, step)
    checkpoint.remove()
    return read


def _batches(
    rows: Iterable[tuple[int, Tensor]], tokens: Batch, target: Tensor, accelerator: Accelerator, multiple: int
) -> Iterator[tuple[int, Batch]]:
    """From a batch's rows to the tensors of this process's share of them, and its weight in the batch's mean."""
    for epoch, index in rows:
        own = local_rows(index, accelerator)
        weight = torch.tensor(len(own) / len(index))
        own = own if len(own) else index[:1]  # a process without a row goes along, at weight 0
        yield epoch, take(tokens, own, "cpu", multiple) | {"target": target[own], "weight": weight}


def _loss(model: nn.Module, batch: Batch, prior: Tensor | int) -> Tensor:
    """Cross-entropy in nats of logits plus ``prior`` (C,)."""
    scores = logits(model, {name: x for name, x in batch.items() if name not in ("target", "weight")}).float()
    return cross_entropy(scores + prior, batch["target"]) * batch["weight"]


@torch.inference_mode()
def outputs(model: nn.Module, tokens: Batch, accelerator: Accelerator) -> Tensor:
    """Logits (N, C) of titles' tokens (N, T), without dropout: float32, on the CPU."""
    model.eval()
    with accelerator.autocast():
        lengths = tokens["attention_mask"].sum(dim=1)
        return encoders.by_length(lengths, lambda rows: logits(model, take(tokens, rows, accelerator.device)).float())


def accuracy(probability: np.ndarray, products: pd.DataFrame, labels: list[str]) -> float:
    """Share of products whose most probable label is theirs. probability: (N, C)."""
    return float(np.mean(np.array(labels)[probability.argmax(1)] == products.label.to_numpy()))
