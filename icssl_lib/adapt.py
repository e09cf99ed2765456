"""The SSL stage: adapt the text encoder on the SSL part, whose labels are never read. Build, pairs, train, measure."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm.auto import tqdm

from icssl_lib import encoders, losses
from icssl_lib.catalogue import Catalogue, normalise_title
from icssl_lib.config import AdaptConfig, FinetuneConfig, Run, Study
from icssl_lib.encoders import Batch, PairScale, TextTower, Towers, VisionTower, explained, take, tokenize
from icssl_lib.fast.checkpoint import Checkpoint, resumable
from icssl_lib.fast.cuda_graphs import LENGTHS, Recorded, can_capture
from icssl_lib.fast.gradcache import cached
from icssl_lib.fast.processes import in_processes, local_rows, make_accelerator, sum_gradients
from icssl_lib.fast.unpad import fast
from icssl_lib.files import locked, written_whole
from icssl_lib.methods import Method, entry_of
from icssl_lib.remedies import load_words


@dataclass
class Adapted:
    """What the SSL stage leaves."""

    backbone: nn.Module
    tokenizer: object
    history: pd.DataFrame  # step, epoch, loss, seconds
    space: pd.DataFrame  # measure, value, when
    pooling: str  # mean or cls
    rest: dict[str, Tensor]  # the other weights of `Towers`: projections, vision backbone, scale, where there are


def build(study: Study, entry: Method) -> tuple[Towers, object]:
    """The towers that a method adapts, projections drawn anew from torch's generator, and the tokenizer."""
    backbone, tokenizer = encoders.load_text(study.text.model, study.text.max_tokens)
    text = TextTower(backbone, study.text.pooling, study.adapt.projection_dim, study.adapt.projection_depth)
    vision = build_vision(study) if entry.pictures != "none" else None
    words = load_words(study.text.model, backbone, tokenizer) if entry.words else None
    scale = PairScale(study.adapt.temperature, study.adapt.batch_size) if entry.scaled else None
    return Towers(text, vision, words, scale), tokenizer


def build_vision(study: Study) -> VisionTower:
    """The vision tower that the study starts from."""
    vision, dim, depth = study.vision, study.adapt.projection_dim, study.adapt.projection_depth
    return VisionTower(encoders.load_vision(vision), dim, depth, vision.frozen, vision.image_size)


def ssl_pairs(catalogue: Catalogue, pictures: str, seed: int, fraction: float = 1.0) -> pd.DataFrame:
    """Titles and picture rows of a random ``fraction`` of the SSL part: title, image_row, group (equal for equal
    normalised titles). ``pictures``: "none" takes all titles; "own" those with a picture; "shuffled" gives each of
    these the picture of another product (a random cyclic order: nobody keeps its own)."""
    ssl = catalogue.part("ssl")[["title", "image_row"]].reset_index(drop=True)
    if pictures != "none":
        ssl = ssl[ssl.image_row >= 0].reset_index(drop=True)
    if pictures == "shuffled":
        order = np.random.default_rng([seed, 1]).permutation(len(ssl))
        ssl.loc[order, "image_row"] = ssl.image_row.to_numpy()[np.roll(order, 1)]
    pairs = ssl.assign(group=pd.factorize(ssl.title.map(normalise_title))[0])
    return pairs if fraction == 1 else pairs.sample(frac=fraction, random_state=seed, ignore_index=True)


class ImageSource:
    """Pictures of store rows as a batch on the device: pixels, or the features of a frozen tower, computed once."""

    def __init__(self, catalogue: Catalogue, vision: VisionTower, accelerator: Accelerator) -> None:
        self.source, self.device = catalogue.checked_images(), accelerator.device
        if vision.frozen:
            self.source = picture_features(catalogue, vision, accelerator).to(self.device)
        elif self.device.type == "cuda" and 2 * self.source.nbytes < torch.cuda.mem_get_info(self.device)[0]:
            self.source = torch.tensor(self.source[:], device=self.device)  # less than half of what is free

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        if isinstance(self.source, Tensor):
            return self.source[torch.as_tensor(rows, device=self.source.device)]
        return torch.tensor(self.source[rows], device=self.device)


@torch.no_grad()
def picture_features(catalogue: Catalogue, vision: VisionTower, accelerator: Accelerator) -> Tensor:
    """What a vision tower that does not train makes of all pictures of the store: float32 (rows, F), on the CPU. They
    are kept beside the store under a hash of the tower's weights: a picture is looked at once, whoever asks."""
    key = hashlib.sha256(f"{vision.size} {accelerator.mixed_precision} {catalogue.split_hash}".encode())
    for weight in vision.backbone.state_dict().values():
        key.update(weight.cpu().contiguous().numpy().tobytes())
    path = catalogue.folder / f"images.npy.{key.hexdigest()[:16]}.npz"
    with locked(path.with_suffix(".lock")):  # jobs that ask at the same time wait for the first
        with suppress(Exception):  # not there, or damaged, which a zip file's CRC tells
            return torch.from_numpy(np.load(path)["features"])
        vision.eval()
        parts = np.array_split(catalogue.checked_images(), max(1, len(catalogue.images) // 64))
        pixels = (torch.tensor(part, device=accelerator.device) for part in tqdm(parts, desc="features"))
        with accelerator.autocast(), written_whole(path) as partial, partial.open("wb") as file:
            features = torch.cat([vision.embed(part).float().cpu() for part in pixels])
            np.savez(file, features=features.numpy())
    return features


def pair_batches(
    rows: Iterable[tuple[int, Tensor]], pairs: pd.DataFrame, tokens: Batch, images: ImageSource | None,
    config: AdaptConfig, accelerator: Accelerator, multiple: int = 1,
) -> Iterator[tuple[int, Batch]]:  # fmt: skip
    """From a batch's rows to the tensors of this process's share; titles are padded to a multiple of ``multiple``."""
    groups, pictures = torch.tensor(pairs.group.to_numpy()), pairs.image_row.to_numpy()
    for epoch, index in rows:
        own = local_rows(index, accelerator)
        batch = take(tokens, own, "cpu", multiple)
        if images is not None:
            batch["images"] = images[pictures[own]]
        if config.mask_duplicates:
            batch["groups"] = groups[index]  # of the whole batch
        yield epoch, batch


def plain_step(model: nn.Module, batch: Batch, loss_fn: Callable, accelerator: Accelerator) -> Tensor:
    """Forward and backward: the loss, detached. Gradients are summed over processes, each with a part of the batch."""
    with accelerator.autocast():
        loss = loss_fn(model, {name: x.to(accelerator.device) for name, x in batch.items()})
    accelerator.backward(loss)
    sum_gradients(model.parameters(), accelerator)
    return loss.detach()


def prepared(
    kind: type[Optimizer], model: nn.Module, config: AdaptConfig | FinetuneConfig, accelerator: Accelerator
) -> Optimizer:
    """The optimizer of what trains in a model; from here on each process draws dropout of its own."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    if accelerator.process_index:
        torch.manual_seed(torch.initial_seed() + 1000 * accelerator.process_index)
    return accelerator.prepare(optimizer)


def train(
    towers: Towers, batches: Iterable[tuple[int, Batch]], loss_fn: Callable[[Towers, Batch], Tensor],
    optimizer: Optimizer, step: Callable, history: list[tuple],
) -> None:  # fmt: skip
    """Train the towers in place, one ``step`` (forward and backward: `plain_step` or what replaces it in `fast`) for
    each batch, appended to ``history``: step, epoch, loss, seconds."""
    started = time.perf_counter() - (history[-1][3] if history else 0.0)
    towers.train()
    for epoch, batch in batches:
        loss = step(towers, batch, loss_fn)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()  # a GPU is waited for once, when all of the step has been started
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {len(history)}; lower adapt.lr")
        history.append((len(history), epoch, value, time.perf_counter() - started))


@torch.no_grad()
def measure(
    towers: Towers, tokenizer, catalogue: Catalogue, study: Study, images: ImageSource | None, accelerator: Accelerator
) -> pd.DataFrame:
    """Alignment and uniformity (Wang & Isola, 2020) of up to 512 Dev products' pooled titles (two dropout passes are a
    positive pair) and, with pictures, of the projected pairs; random state unchanged. Returns: measure, value."""
    dev = catalogue.part("dev").head(512)
    titles, pictured = list(dev.title), (dev.image_row >= 0).to_numpy()
    with torch.random.fork_rng(), accelerator.autocast():
        tokens = take(tokenize(tokenizer, titles, study.text.max_tokens), torch.arange(len(dev)), accelerator.device)
        clean = encoders.embed_titles(towers.text.backbone, tokenizer, titles, study.text)
        towers.text.train()
        values = {"title alignment": losses.alignment(towers.text.embed(**tokens), towers.text.embed(**tokens))}
        values["title uniformity"] = losses.uniformity(clean)
        if images is not None and pictured.any():
            towers.eval()
            text = towers.text(**tokens)[torch.tensor(pictured)]
            # In small pieces: a batch of 512 pictures at 224 px would hold gigabytes of activations.
            pieces = np.array_split(dev.image_row.to_numpy()[pictured], max(1, pictured.sum() // 32))
            vision = torch.cat([towers.vision(images[piece]) for piece in pieces])
            values["title-picture alignment"] = losses.alignment(text, vision)
    return pd.DataFrame({"measure": list(values), "value": [float(value) for value in values.values()]})


def adapt(run: Run, catalogue: Catalogue, study: Study, checkpoint: Path | None = None, progress=True) -> Adapted:
    """Train the towers on unlabelled pairs of the SSL part with the loss of the run's method (Chen & Chou, 2022,
    section 3), in ``runtime.processes`` processes. study: no model of it is named "pretrained" any more (see
    `runs.resolved`). checkpoint: file for the state of a long training, which a killed call goes on from."""
    return in_processes(study.runtime, _adapt, run, catalogue, study, checkpoint, progress)


def _adapt(run: Run, catalogue: Catalogue, study: Study, path: Path | None, progress: bool) -> Adapted:
    entry, study = entry_of(study, run.method), study.of(run.method)
    config = study.adapt
    if not entry.adapts:
        raise ValueError(f"'{run.method}' uses the encoder as it comes; there is nothing to adapt")
    set_seed(run.seed)
    accelerator = make_accelerator(study.runtime)
    pairs = ssl_pairs(catalogue, entry.pictures, run.seed, config.ssl_fraction)
    size = min(config.batch_size, len(pairs)) // accelerator.num_processes * accelerator.num_processes
    if size < 2:
        seen = " with a picture" * (entry.pictures != "none")
        raise ValueError(f"{run.dataset}: the SSL part has too few titles{seen} for a batch: {len(pairs)}")
    whole = len(pairs) // size * size  # a remainder would have fewer negatives: it is left out of an epoch
    towers, tokenizer = build(study, entry)
    towers.to(accelerator.device)
    with fast(towers, study.runtime.fast) as packing:
        images = ImageSource(catalogue, towers.vision, accelerator) if towers.vision else None
        measured = partial(measure, towers, tokenizer, catalogue, study, images, accelerator)
        before = measured().assign(when="before")
        capture = config.chunk_size is None and not entry.words and can_capture(study.runtime, accelerator)
        tokens = tokenize(tokenizer, list(pairs.title), study.text.max_tokens)
        alone = config.chunk_size is None and accelerator.num_processes == 1
        step = partial(plain_step, accelerator=accelerator) if alone else cached(accelerator, config.chunk_size)
        step = Recorded(step, towers.parameters(), packing, accelerator.device, capture)
        steps, history = config.epochs * whole // size, []
        optimizer = prepared(AdamW, towers, config, accelerator)
        parts = {"towers": towers, "optimizer": optimizer, "history": history}
        checkpoint = Checkpoint(path, study.runtime.checkpoint_minutes, accelerator, **parts)
        order = lambda _, generator: torch.randperm(len(pairs), generator=generator)[:whole].split(size)  # noqa: E731
        rows = resumable(config.epochs, order, torch.Generator().manual_seed(run.seed), checkpoint)
        hidden = not (progress and accelerator.is_main_process)
        bar = tqdm(rows, str(run), steps, initial=len(history), unit="step", disable=hidden)
        batches = pair_batches(bar, pairs, tokens, images, config, accelerator, LENGTHS if capture else 1)
        train(towers, batches, partial(entry.loss, config=config), optimizer, step, history)
        checkpoint.remove()
        space = pd.concat([before, measured().assign(when="after")], ignore_index=True)
    tokenizer.model_max_length = study.text.max_tokens  # others cut titles where adaptation did
    history = pd.DataFrame(history, columns=["step", "epoch", "loss", "seconds"])
    left_out = ("text.backbone.", "words.")  # the first has a folder of its own; nobody guesses words any more
    rest = {name: w.cpu().contiguous() for name, w in towers.state_dict().items() if not name.startswith(left_out)}
    return Adapted(towers.text.backbone.cpu().eval(), tokenizer, history, space, towers.text.pooling, rest)


def save(adapted: Adapted, folder: Path) -> None:
    """Keep the encoder as a plain Hugging Face folder, and in it history.csv, space.csv and towers.safetensors."""
    encoders.save_pretrained(adapted.backbone, adapted.tokenizer, folder, adapted.pooling)
    adapted.history.to_csv(folder / "history.csv", index=False)
    adapted.space.to_csv(folder / "space.csv", index=False)
    with written_whole(folder / "towers.safetensors") as path:
        save_file(adapted.rest, path)


def load_towers(study: Study, method: str, folder: Path) -> tuple[Towers, object]:
    """The towers that `save` left in ``folder``, in evaluation mode, and the tokenizer. A picture is embedded by
    ``vision.projection(vision.embed(pixels))``, frozen or not. Raises: ModelError."""
    entry, study = replace(entry_of(study, method), words=False), study.of(method)  # the head for words is not kept
    towers, tokenizer = build(study.starting_from(folder), entry)
    backbone = {name: w for name, w in towers.state_dict().items() if name.startswith("text.backbone.")}
    path, again = folder / "towers.safetensors", "; run the adaptation again: delete the folder, then `make study`"
    with explained(f"{path}: no towers that fit the study's settings", again):
        towers.load_state_dict(load_file(path) | backbone)
    return towers.eval(), tokenizer
