"""The SSL stage: adapt the text encoder on the SSL part, whose labels are never read."""

import math
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_scheduler

from icssl_lib import losses
from icssl_lib.catalogue import Catalogue, normalise_title, open_catalogue
from icssl_lib.config import RuntimeConfig, Study, VisionConfig, load_config
from icssl_lib.encoders import (
    MaskedWords,
    ModelError,
    TextTower,
    VisionTower,
    embed_titles,
    load_text,
    load_vision,
    load_words,
    save_pretrained,
    take,
    tokenize,
)
from icssl_lib.fast import decay_is_lost, fast, trimmed
from icssl_lib.graphs import Replay, can_capture
from icssl_lib.images import written_whole
from icssl_lib.methods import entry_of
from icssl_lib.runs import digest, piece
from icssl_lib.scale import START, Checkpoint, WholeBatch, batches_left, in_processes, local_rows


class Towers(nn.Module):
    """The text tower and, for methods with pictures, the vision tower; words: a head on the text tower's encoder."""

    def __init__(self, text: TextTower, vision: VisionTower | None, words: MaskedWords | None = None) -> None:
        super().__init__()
        self.text, self.vision, self.words = text, vision, words


@dataclass
class Batch:
    """tokens: input_ids and attention_mask (N, T); images: uint8 (N, S, S, 3), or features (N, F) of a frozen
    tower, or None; groups: (N,), equal for equal titles, or None."""

    tokens: dict[str, Tensor]
    images: Tensor | None
    groups: Tensor | None


@dataclass
class Adapted:
    """What the SSL stage leaves. history: step, epoch, loss, seconds. space: measure, when, value. rest: the towers'
    weights beside the text backbone, by their names in `Towers`: projections and, with pictures, the vision backbone.
    """

    backbone: nn.Module
    tokenizer: object
    history: pd.DataFrame
    space: pd.DataFrame
    rest: dict[str, Tensor]


def precision_here(runtime: RuntimeConfig) -> str:
    """Accelerate's name of the precision: "auto" is bf16 where the device multiplies in it, float32 elsewhere.

    Raises: ValueError: bf16 on a CPU without instructions for it, which would need a hundred times as long.
    """
    if runtime.precision not in ("auto", "bf16"):
        return runtime.precision
    if runtime.device != "cpu" and torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # of CPUs only x86 says what it can
        able = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
        if runtime.precision == "bf16" and not able and platform.machine() in ("x86_64", "AMD64"):
            raise ValueError(
                "runtime.precision: bf16, but this CPU has no instructions for it (AMX or AVX512-BF16) and would need "
                "a hundred times as long; use auto, which is bf16 where it pays, or no"
            )
    return "bf16" if able or runtime.precision == "bf16" else "no"


def path_here(runtime: RuntimeConfig) -> list[str | bool]:
    """What of ``runtime`` decides how a step is computed: part of the key of a training's state."""
    graphs = [] if runtime.cuda_graphs else ["no graphs"]  # so that keys from before there were any stay
    return [precision_here(runtime), runtime.fast, runtime.compile, *graphs]


def make_accelerator(runtime: RuntimeConfig) -> Accelerator:
    """An Accelerator on the configured device; on a CPU the number of threads is fixed, since sums depend on it.

    Raises: ValueError: the device is not there, or is a CPU that would only emulate the precision.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device: cuda, but torch sees no GPU; use auto or cpu")
    accelerator = Accelerator(cpu=runtime.device == "cpu", mixed_precision=precision_here(runtime))
    if accelerator.device.type == "cpu":
        torch.set_num_threads(runtime.threads)
    return accelerator


def ssl_pairs(catalogue: Catalogue, pictures: str, seed: int) -> pd.DataFrame:
    """Titles and picture rows of the SSL part: title, image_row, group (equal for equal normalised titles).

    ``pictures``: "none" takes all titles; "own" and "neighbours" those with a picture; "shuffled" gives each the
    picture of another product (a random cyclic order: nobody keeps its own).

    Raises: ValueError: fewer than 2 products are left.
    """
    ssl = catalogue.part("ssl")[["title", "image_row"]].reset_index(drop=True)
    if pictures != "none":
        ssl = ssl[ssl.image_row >= 0].reset_index(drop=True)
    if len(ssl) < 2:
        what = "titles" if pictures == "none" else "titles with a picture"
        raise ValueError(f"{catalogue.name}: the SSL part has {len(ssl)} {what}; at least 2 are needed")
    if pictures == "shuffled":
        order = np.random.default_rng([seed, 1]).permutation(len(ssl))
        ssl.loc[order, "image_row"] = ssl.image_row.to_numpy()[np.roll(order, 1)]
    return ssl.assign(group=pd.factorize(ssl.title.map(normalise_title))[0])


def epoch_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random batches of row numbers, a new order each epoch; a remainder below batch_size is left out, for its
    loss would have other negatives (unless it is all there is)."""
    order = torch.randperm(n, generator=generator)
    size = min(batch_size, n)
    return iter(order[: n // size * size].split(size))


def adapt(method: str, catalogue: Catalogue, study: Study, seed: int, out: Path, progress: bool = True) -> Adapted:
    """`adapt_here` in as many processes as the study asks for."""
    return in_processes(study.runtime, adapt_here, method, catalogue, study, seed, out, progress)


def adapt_here(method: str, catalogue: Catalogue, study: Study, seed: int, out: Path, progress: bool = True) -> Adapted:
    """Train the towers on unlabelled pairs with the loss of ``method`` (Chen & Chou, 2022, section 3).

    Args:
        method: a name in METHODS that adapts, or a variant of one.
        catalogue: its SSL part is trained on; titles and pictures of Dev only measure the space.
        study: models and settings.
        seed: of projections, dropout and the order of batches.
        out: the run folder, where a model named "pretrained" lies.

    Raises:
        ValueError: the method does not adapt, needs pictures that the catalogue has not, or finds one title only.
        FloatingPointError: the loss is no longer finite.
    """
    entry, study = entry_of(study, method), study.of(method)
    config = study.adapt
    if not entry.adapts:
        raise ValueError(f"'{method}' uses the encoder as it comes; there is nothing to adapt")
    set_seed(seed)
    accelerator = make_accelerator(study.runtime)
    pairs = ssl_pairs(catalogue, entry.pictures, seed)
    if config.ssl_fraction < 1:
        pairs = pairs.sample(frac=config.ssl_fraction, random_state=seed, ignore_index=True)
    backbone, tokenizer = load_text(text_model(study, out))
    towers = Towers(
        TextTower(backbone, study.text.pooling, config.projection_dim, config.projection_depth),
        make_vision(study, out) if entry.pictures != "none" else None,
        load_words(text_model(study, out), backbone, tokenizer) if entry.words else None,
    ).to(accelerator.device)
    batch_size = min(config.batch_size, len(pairs)) // accelerator.num_processes * accelerator.num_processes
    if batch_size < 2:
        raise ValueError(f"{catalogue.name}: {len(pairs)} pairs are too few for {accelerator.num_processes} processes")
    steps = config.epochs * (len(pairs) // batch_size)
    tokens = tokenize(tokenizer, list(pairs.title), study.text.max_tokens)
    asked = tokenize(tokenizer, list(catalogue.part("dev").title), study.text.max_tokens)  # by `measure`
    trim = study.runtime.fast and not entry.words and decay_is_lost(config.lr, config.weight_decay)
    fewer_words = trimmed(backbone, tokens["input_ids"], asked["input_ids"], enabled=trim)
    capturable = config.chunk_size is None and not entry.words and can_capture(study.runtime, accelerator)

    def step(images: Tensor | None = None, groups: Tensor | None = None, **tokens: Tensor) -> Tensor:
        whole = WholeBatch(towers, config.chunk_size, accelerator)
        with accelerator.autocast():
            loss = entry.loss(whole, Batch(tokens, images, groups), config)
        whole.backward(loss)
        return loss

    with fewer_words, fast(towers, study.runtime.fast, study.runtime.compile) as packing:
        optimizer = torch.optim.AdamW(
            [p for p in towers.parameters() if p.requires_grad],
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )
        schedule = get_scheduler(config.schedule, optimizer, round(config.warmup * steps), steps)
        optimizer = accelerator.prepare(optimizer)
        checkpoint = Checkpoint(
            piece(out, "checkpoints", catalogue.name, method, seed).with_suffix(".pt"),
            study.runtime.checkpoint_minutes,
            digest(
                method,
                seed,
                study.adapt,
                study.text,
                study.vision,
                *path_here(study.runtime),
                catalogue.split_hash,
                fingerprint(towers),
            ),
            accelerator,
            towers=towers,
            optimizer=optimizer,
            schedule=schedule,
        )
        replay = Replay(step, towers.parameters(), packing, accelerator.device, capturable)
        images = ImageSource(catalogue, towers.vision, accelerator) if towers.vision else None
        before = measure(towers, tokenizer, catalogue, study, images, accelerator)

        generator = torch.Generator().manual_seed(seed)
        if accelerator.process_index:
            torch.manual_seed(seed + 1000 * accelerator.process_index)  # rows elsewhere have a dropout of their own
        rows, groups = pairs.image_row.to_numpy(), torch.tensor(pairs.group.to_numpy())
        near = nearest_pictures(images, towers.vision, rows) if entry.pictures == "neighbours" else rows
        at = checkpoint.resume() or START | {"history": [], "alike": 0, "seconds": 0.0}
        history, alike, started = at["history"], at["alike"], time.perf_counter() - at["seconds"]
        bar = tqdm(
            total=steps,
            initial=len(history) + alike,
            desc=f"{catalogue.name} {method} seed {seed}",
            unit="step",
            disable=not (progress and accelerator.is_main_process),
        )
        for epoch in range(at["epoch"], config.epochs):
            towers.train()
            swapped = np.random.default_rng([seed, 2, epoch]).random(len(rows)) < config.neighbour_share
            seen = np.where(swapped, near, rows)
            for position, index in batches_left(at, epoch, generator, partial(epoch_batches, len(pairs), batch_size)):
                if config.mask_duplicates and (groups[index] == groups[index[0]]).all():
                    alike += 1  # the same title throughout: nobody has a negative
                    bar.update()
                    continue
                own = local_rows(index, accelerator)
                batch = take(tokens, own, "cpu", replay.pad_to_multiple_of)
                if images:
                    batch["images"] = images[seen[own]]
                if config.mask_duplicates:
                    batch["groups"] = groups[index]
                found = replay(**batch)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                loss = found.item()  # a GPU is waited for once, when all of the step has been started
                if not math.isfinite(loss):
                    raise FloatingPointError(f"{method}: loss is {loss} at step {len(history)}; lower adapt.lr")
                history.append((len(history), epoch, loss, time.perf_counter() - started))
                bar.update()
                if checkpoint.due():
                    checkpoint.save(**position, history=history, alike=alike, seconds=time.perf_counter() - started)
            bar.set_postfix(loss=f"{np.mean([h[2] for h in history if h[1] == epoch] or np.nan):.3f}")
        bar.close()
        if alike:
            warnings.warn(f"{catalogue.name}: {alike} of {steps} batches were left out, all one title", stacklevel=2)
        if not history:
            raise ValueError(f"{catalogue.name}: no batch has two different titles; set adapt.mask_duplicates: false")
        after = measure(towers, tokenizer, catalogue, study, images, accelerator)
    checkpoint.remove()
    tokenizer.model_max_length = study.text.max_tokens  # others cut titles where adaptation did
    return Adapted(
        towers.text.backbone.cpu().eval(),
        tokenizer,
        pd.DataFrame(history, columns=["step", "epoch", "loss", "seconds"]),
        pd.concat([before.assign(when="before"), after.assign(when="after")], ignore_index=True),
        {name: w.cpu().contiguous() for name, w in towers.state_dict().items() if not name.startswith(_NOT_KEPT)},
    )


def fingerprint(model: nn.Module) -> str:
    """A short text that differs for other weights: what a checkpoint's training began with."""
    return str(sum(parameter.detach().double().sum().item() for parameter in model.parameters()))


class ImageSource:
    """Pictures of store rows as a batch on the device: pixels, or the features of a frozen tower, computed once."""

    def __init__(self, catalogue: Catalogue, vision: VisionTower, accelerator: Accelerator) -> None:
        if catalogue.images is None:
            raise ValueError(f"{catalogue.name} has no pictures; ConVIRT needs them")
        self.store, self.device, self.features = catalogue.images, accelerator.device, None
        self.held = None  # all pixels on the GPU, (products, S, S, 3), where they take less than half of what is free
        if self.device.type == "cuda" and 2 * self.store.nbytes < torch.cuda.mem_get_info(self.device)[0]:
            self.held = torch.tensor(self.store[np.arange(len(self.store))], device=self.device)
        if vision.frozen:
            vision.eval()
            with torch.inference_mode(), accelerator.autocast():
                chunks = np.array_split(np.arange(len(self.store)), max(1, len(self.store) // 64))
                embedded = [vision.embed(self.pixels(rows)).float() for rows in tqdm(chunks, desc="features")]
            self.features = torch.cat(embedded).clone()

    def pixels(self, rows: np.ndarray) -> Tensor:
        if self.held is not None:
            return self.held[torch.as_tensor(rows, device=self.device)]
        return torch.tensor(self.store[rows], device=self.device)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        return self.pixels(rows) if self.features is None else self.features[torch.as_tensor(rows)]


@torch.inference_mode()
def nearest_pictures(images: ImageSource, vision: VisionTower, rows: np.ndarray) -> np.ndarray:
    """The store row of the picture most like each product's own, by the cosine of the tower's features as they are
    (nearest neighbours as positives: Dwibedi et al., 2021, who look them up in a queue as it trains).

    Args: rows: store rows, int (N,), N >= 2. Returns: int (N,); never its own place in ``rows``.
    """
    vision.eval()
    parts = np.array_split(rows, max(1, len(rows) // 64))
    features = [images[part] if vision.frozen else vision.embed(images[part]).float() for part in parts]
    features = nn.functional.normalize(torch.cat(features), dim=1)  # (N, F)
    nearest = []
    for part in torch.arange(len(rows)).split(1024):  # (1024, N) cosines at a time
        cosine = features[part] @ features.T
        cosine[torch.arange(len(part)), part] = -torch.inf
        nearest.append(cosine.argmax(dim=1).cpu())
    return rows[torch.cat(nearest).numpy()]


_BACKBONE = "text.backbone."
_NOT_KEPT = (_BACKBONE, "words.")  # the first in a folder of its own; nobody guesses words after adaptation


def save(adapted: Adapted, folder: Path) -> None:
    """Keep the encoder as a plain Hugging Face folder, with history.csv, space.csv and towers.safetensors in it.

    The last holds what classification has no use for, and a search for pictures by titles has: see `load_towers`.
    """
    save_pretrained(adapted.backbone, adapted.tokenizer, folder)
    adapted.history.to_csv(folder / "history.csv", index=False)
    adapted.space.to_csv(folder / "space.csv", index=False)
    with written_whole(folder / "towers.safetensors") as path:
        save_file(adapted.rest, path)


def load_towers(study: Study, out: Path, dataset: str, method: str, seed: int) -> tuple[Towers, object]:
    """The towers as adaptation left them, in evaluation mode, and the tokenizer.

    A method without pictures has no vision tower. A picture is embedded by ``vision.projection(vision.embed(pixels))``,
    frozen or not.

    Raises: ModelError: not adapted, adapted before towers were kept, or with other settings than the study's.
    """
    entry, study = entry_of(study, method), study.of(method)
    folder, config = piece(out, "encoders", dataset, method, seed), study.adapt
    path = folder / "towers.safetensors"
    command = f"python -m icssl_lib.adapt CONFIG OUT {dataset} {method} {seed}"
    again = f"run the adaptation again: delete the folder, then `make study`, or `{command}`"
    if not path.is_file():
        raise ModelError(f"{path}: no such file: no towers were kept beside this encoder; {again}")
    backbone, tokenizer = load_text(str(folder))
    towers = Towers(
        TextTower(backbone, study.text.pooling, config.projection_dim, config.projection_depth),
        make_vision(study, out) if entry.pictures != "none" else None,
    )
    try:
        left = towers.load_state_dict(load_file(path), strict=False)
        absent = [name for name in left.missing_keys if not name.startswith(_BACKBONE)] + left.unexpected_keys
        if absent:
            raise RuntimeError(f"{absent[0]} is not in both")
    except (RuntimeError, SafetensorError) as error:
        what = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} does not fit the study's settings ({what}); {again}") from None
    return towers.eval(), tokenizer


def text_model(study: Study, out: Path) -> str:
    """The name or folder of the encoder that the study starts from."""
    return str(out / "pretrained" / "text") if study.text.model == "pretrained" else study.text.model


def vision_model(study: Study, out: Path) -> VisionConfig:
    """The vision settings, with the name or folder of the model that the study starts from."""
    if study.vision.model != "pretrained":
        return study.vision
    return study.vision.model_copy(update={"model": f"local-dir:{out / 'pretrained' / 'vision'}"})


def make_vision(study: Study, out: Path) -> VisionTower:
    """The vision tower that the study starts from."""
    vision, config = vision_model(study, out), study.adapt
    dim, depth = config.projection_dim, config.projection_depth
    return VisionTower(load_vision(vision), dim, depth, vision.frozen, vision.image_size)


@torch.no_grad()
def measure(
    towers: Towers,
    tokenizer,
    catalogue: Catalogue,
    study: Study,
    images: ImageSource | None,
    accelerator: Accelerator,
    most: int = 512,
) -> pd.DataFrame:
    """Alignment and uniformity (Wang & Isola, 2020) on up to ``most`` Dev products; no label is read.

    Of the pooled titles (two dropout passes are the positive pairs) and, with pictures, of the projected pairs.
    Returns: measure, value. The random state is left as it was.
    """
    dev = catalogue.part("dev").head(most)
    towers.eval()
    rows = []
    with torch.random.fork_rng(), accelerator.autocast():
        tokens = tokenize(tokenizer, list(dev.title), study.text.max_tokens)
        tokens = take(tokens, torch.arange(len(dev)), accelerator.device)
        clean = embed_titles(towers.text.backbone, tokenizer, list(dev.title), study.text)
        towers.text.train()
        rows.append(("title alignment", losses.alignment(towers.text.embed(**tokens), towers.text.embed(**tokens))))
        rows.append(("title uniformity", losses.uniformity(clean)))
        if images is not None and (dev.image_row >= 0).any():
            towers.eval()
            paired = (dev.image_row >= 0).to_numpy()
            text = towers.text(**tokens)[torch.tensor(paired)]
            # In small pieces: a batch of 512 pictures at 224 px would hold gigabytes of activations.
            pieces = np.array_split(dev.image_row.to_numpy()[paired], max(1, paired.sum() // 32))
            vision = torch.cat([towers.vision(images[piece]) for piece in pieces])
            rows.append(("title-picture alignment", losses.alignment(text, vision)))
    return pd.DataFrame([(name, float(value)) for name, value in rows], columns=["measure", "value"])


def main(arguments: list[str]) -> None:
    """accelerate launch --num_processes 8 -m icssl_lib.adapt CONFIG OUT DATASET METHOD SEED

    One SSL stage without a notebook, on as many processes and machines as `accelerate launch` starts. OUT holds the
    catalogue already; the encoder goes where notebook 02 puts it.
    """
    config, out, dataset, method, seed = arguments
    study, out = load_config(config), Path(out).resolve()
    adapted = adapt(method, open_catalogue(out / "catalogues" / dataset), study, int(seed), out)
    if PartialState().is_main_process:
        save(adapted, piece(out, "encoders", dataset, method, int(seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
