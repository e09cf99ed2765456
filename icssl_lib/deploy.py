"""What an answer costs: a classifier as ONNX, and titles alone against titles with pictures, measured.

Torch, transformers and pandas are imported where they are needed, so that a process which serves an ONNX file
(onnxruntime, tokenizers, numpy) holds none of them.
"""

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icssl_lib.images import decode, folder_written_whole
from icssl_lib.lexical import WORDS, Lexical, geometric_mean

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from icssl_lib.catalogue import Catalogue
    from icssl_lib.config import Study, VisionConfig

WHAT = {
    "title": "Title",
    "title_onnx": "Title, ONNX",
    "title_int8": "Title, ONNX int8",
    "title_words": "Title + TF-IDF",
    "picture": "Picture",
    "late": "Title + picture (late)",
    "joint": "Title + picture (joint)",
}
EXPORTS = ("title_onnx", "title_int8")  # of WHAT, those that onnxruntime serves
# what serves a kind of classifier
SERVES = {"finetune": "title", "distilled": "title", "image": "picture", "late": "late", "joint": "joint"}
COSTS = ["p50_ms", "p99_ms", "items_per_s", "peak_mb", "model_mb", "bytes_per_request", "gflops"]
WARM = 2  # calls before any is timed: the first ones fill caches
COUNTED = 16  # products at least over which operations are averaged, since titles differ in length
AT_ONCE = 32  # titles of a batch when many are read
NAMES = ["input_ids", "attention_mask"]

Answer = Callable[[Sequence[str], Sequence[bytes]], np.ndarray]  # titles, JPEGs -> probabilities, float32 (N, C)


class DeployError(ValueError):
    """What cannot be exported, served or measured; the message says what, where and what to do."""


# --- a classifier's folder, and its export ---


def settings_of(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a classifier's folder.

    Raises: DeployError: no such folder, or no classifier of titles in it.
    """
    hint = "name a folder below runs/<study>/classifiers, which notebook 03 writes"
    if not folder.is_dir():
        kept = "where `finetune.keep_classifiers` holds the fraction"
        raise DeployError(f"{folder}: no such folder; {hint} {kept}")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = settings.get("architectures") or []
    except (OSError, ValueError, AttributeError):
        raise DeployError(f"{folder}: no config.json that could be read; {hint}") from None
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise DeployError(f"{folder}: no classifier ({', '.join(architectures) or 'no architecture'}); {hint}")
    return settings


def labels_of(folder: Path) -> list[str]:
    """The classes of a classifier's folder, in the order of its outputs."""
    names = settings_of(folder)["id2label"]
    return [names[i] for i in sorted(names, key=int)]


def max_tokens(folder: Path) -> int:
    """How many tokens of a title its classifier reads, special ones included."""
    limit = settings_of(folder).get("max_position_embeddings", 512)
    with contextlib.suppress(OSError):
        limit = min(limit, json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["model_max_length"])
    return int(limit)


def load_classifier(folder: Path) -> "tuple[torch.nn.Module, Any]":
    """The model, in float32 and without dropout, and its tokenizer.

    Raises: DeployError: no classifier, or its weights or its tokenizer cannot be loaded.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    settings_of(folder)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of transformers, safetensors or tokenizers
        first = str(error).splitlines()[0]
        raise DeployError(f"{folder}: cannot be loaded ({first}); run notebook 03 for it again") from None


def export_onnx(folder: Path, out: Path) -> Path:
    """Write a classifier as ONNX in float32, with its labels and tokenizer beside it: ``model.onnx``, ``config.json``,
    ``tokenizer.json``. Inputs are input_ids and attention_mask, int64 (N, T), any N and T; output logits (N, C).

    Args:
        folder: a Hugging Face classifier.
        out: a new or an empty folder, or one of an earlier export, which is replaced as a whole.

    Raises: DeployError: no classifier, a tokenizer that is no fast one, or ``out`` holds anything else.
    """
    import torch

    _check_replaced(folder, out)
    model, tokenizer = load_classifier(folder)
    if not tokenizer.is_fast:
        raise DeployError(f"{folder}: {type(tokenizer).__name__} is no fast tokenizer and writes no tokenizer.json")
    tokens = tokenizer(["a title", "another, longer title"], padding=True, return_tensors="pt")
    shape = {
        0: torch.export.Dim("titles", min=1, max=4096),
        1: torch.export.Dim("tokens", min=1, max=max_tokens(folder)),
    }
    with _quiet():
        program = torch.onnx.export(
            model, (), kwargs={name: tokens[name] for name in NAMES}, input_names=NAMES, output_names=["logits"],
            dynamic_shapes=dict.fromkeys(NAMES, shape), dynamo=True, verbose=False,
        )  # fmt: skip
    with folder_written_whole(out) as part:
        model.config.save_pretrained(part)
        tokenizer.save_pretrained(part)
        program.save(str(part / "model.onnx"))
    return out


def quantize_int8(fp32: Path, out: Path) -> Path:
    """Write an exported classifier with its weights in int8; activations are quantized as they come.

    Weights have a scale per channel and 7 bits: with 8, the sums of two products overflow their 16 bits on x86 without
    VNNI, and the same file would answer otherwise on another CPU (onnxruntime's documentation of quantization).

    Args:
        fp32: what `export_onnx` wrote.
        out: a new or an empty folder, or one of an earlier export, which is replaced as a whole.

    Raises: DeployError: ``fp32`` holds no export, or ``out`` holds anything but one.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _exported(fp32)
    _check_replaced(fp32, out)
    with _quiet(), folder_written_whole(out) as part:
        for file in fp32.iterdir():
            if file.suffix == ".json":
                shutil.copyfile(file, part / file.name)
        options = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
        quantize_dynamic(model, part / "model.onnx", **options)
    return out


def _exported(folder: Path | None) -> Path:
    if folder is None or not (folder / "model.onnx").is_file():
        raise DeployError(f"{folder}: no model.onnx; call export_onnx(classifier, folder) first")
    return folder / "model.onnx"


def _check_replaced(source: Path, out: Path) -> None:
    """Raises: DeployError: ``out`` is to be replaced as a whole, and more than an earlier export would be lost."""
    hint = "name a new or an empty folder, or one of an earlier export"
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise DeployError(f"{out}: would be replaced, and {source} is read from it; {hint}")
    if out.exists() and not out.is_dir():
        raise DeployError(f"{out}: is no folder; {hint}")
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    weights = [name for name in held if name.endswith((".safetensors", ".bin"))]
    if held and ("model.onnx" not in held or weights):
        found = f"{weights[0]}, which no export writes" if weights else f"no model.onnx, but {held[0]}"
        raise DeployError(f"{out}: would be replaced, and holds {found}; {hint}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks: on names of axes, and on a preparation that transformers do not need."""
    import logging
    import warnings

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# --- what answers ---


def _checked(titles: Sequence[str]) -> list[str]:
    if isinstance(titles, str) or not all(isinstance(title, str) for title in titles):
        raise DeployError("titles: expected a list of str, one for each product")
    if len(titles) == 0:
        raise DeployError("titles: the list is empty; give at least one title")
    return list(titles)


class OnnxClassifier:
    """Titles to probabilities by onnxruntime. Call: N titles -> float32 (N, C), as one batch.

    Args:
        folder: of `export_onnx` or `quantize_int8`.
        threads: of one call.

    Raises: DeployError: no export in the folder; called with no titles.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.file = _exported(folder)
        self.session = onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])
        self.labels = labels_of(folder)
        token = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["pad_token"]
        pad = token if isinstance(token, str) else token["content"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_tokens(folder))
        self.tokenizer.enable_padding(pad_id=self.tokenizer.token_to_id(pad), pad_token=pad)

    def __call__(self, titles: Sequence[str], jpegs: Sequence[bytes] = ()) -> np.ndarray:
        read = self.tokenizer.encode_batch(_checked(titles))
        rows = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
        (logits,) = self.session.run(["logits"], {name: np.array(row, np.int64) for name, row in rows.items()})
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)

    @property
    def weights_mb(self) -> float:
        return self.file.stat().st_size / 1e6


@dataclass(frozen=True)
class Models:
    """Where the contestants come from.

    classifier: the text-only classifier, a Hugging Face folder, with TF-IDF in it where the method has it. fp32, int8:
    its exports. vision: the vision tower that the dual-input models get, None where titles have no pictures. pooling:
    of titles in the joint model.
    """

    classifier: Path
    fp32: Path | None = None
    int8: Path | None = None
    vision: "VisionConfig | None" = None
    pooling: str = "mean"


class TorchClassifier:
    """A contestant that torch serves. Call: N titles and JPEGs -> probabilities, float32 (N, C), as one batch.

    Heads that look at pictures have random weights, and ``late`` averages with equal weights: what an answer costs does
    not depend on what a weight is. Pictures are decoded and resized in the call.

    Args: what: title, title_words, picture, late or joint.

    Raises: DeployError: no classifier, no TF-IDF in its folder, or no vision tower, where that is asked for.
    """

    def __init__(self, what: str, models: Models, device: str = "cpu") -> None:
        import torch
        from torch import nn

        self.device, self.parts = torch.device(device), nn.ModuleDict()
        self.max_tokens, n_labels = max_tokens(models.classifier), len(labels_of(models.classifier))
        self.words = _lexical(models.classifier) if what == "title_words" else None
        if what in ("title", "title_words", "late"):
            self.parts["say"], self.tokenizer = load_classifier(models.classifier)
        if not what.startswith("title"):
            from icssl_lib.encoders import TextTower, VisionTower, load_text, load_vision
            from icssl_lib.finetune import LookingClassifier

            if models.vision is None:
                raise DeployError(f"{what}: needs a vision tower, and Models.vision is None; give the study's")
            text, self.size = None, models.vision.image_size
            if what == "joint":
                backbone, self.tokenizer = load_text(str(models.classifier))
                text = TextTower(backbone, models.pooling, projection_dim=1, depth=0)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                vision = VisionTower(load_vision(models.vision), 1, depth=0, size=self.size)
                self.parts["look"] = LookingClassifier(text, vision, n_labels)
        self.parts.eval().requires_grad_(False).to(self.device)
        self.what = what

    def __call__(self, titles: Sequence[str], jpegs: Sequence[bytes] = ()) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = {} if self.what == "picture" else self._tokens(_checked(titles))
            found = []
            if "say" in self.parts:
                found.append(self.parts["say"](**tokens).logits.softmax(-1))
            if "look" in self.parts:
                read = tokens if self.what == "joint" else {}
                found.append(self.parts["look"](**self._pictures(jpegs), **read).softmax(-1))
            answer = torch.stack(found).mean(dim=0).cpu().numpy()
        return answer if self.words is None else geometric_mean(answer, self.words(titles)).astype(np.float32)

    def _tokens(self, titles: list[str]) -> "dict[str, Tensor]":
        from icssl_lib.encoders import tokenize

        return {name: x.to(self.device) for name, x in tokenize(self.tokenizer, titles, self.max_tokens).items()}

    def _pictures(self, jpegs: Sequence[bytes]) -> "dict[str, Tensor]":
        import torch

        if len(jpegs) == 0:
            raise DeployError(f"{self.what}: answers products with a picture, and no picture came")
        pixels = torch.from_numpy(np.stack([decode(jpeg, self.size) for jpeg in jpegs]))
        shown = torch.ones(len(jpegs), dtype=torch.bool)
        return {"pixels": pixels.to(self.device), "shown": shown.to(self.device)}

    @property
    def weights_mb(self) -> float:
        """As .safetensors files hold them."""
        words = 4 * self.words.weight.size if self.words else 0
        return (sum(tensor.nbytes for tensor in self.parts.state_dict().values()) + words) / 1e6


def _lexical(folder: Path) -> Lexical:
    """The TF-IDF that a classifier's folder holds. Raises: DeployError: it holds none, or a damaged one."""
    try:
        return Lexical.load(folder)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DeployError(f"{folder}: TF-IDF cannot be read there ({first}); name a folder of `recommended`") from None


def load(what: str, models: Models, device: str = "cpu", threads: int = 1) -> OnnxClassifier | TorchClassifier:
    """A contestant, a name in WHAT.

    Raises: DeployError: unknown name, or it lacks a folder or a vision tower.
    """
    from icssl_lib.config import nearest

    if what not in WHAT:
        raise DeployError(f"what: no contestant '{what}'; {nearest(what, list(WHAT))}")
    if what in EXPORTS:
        return OnnxClassifier(models.fp32 if what == "title_onnx" else models.int8, threads)
    return TorchClassifier(what, models, device)


# --- accuracy of an export ---


def compare(models: Models, titles: Sequence[str], labels: Sequence[str]) -> "pd.DataFrame":
    """The exports beside the classifier that they were made from, on the same products.

    Args: titles, labels: of products whose labels may be looked at as often as one likes, such as Dev's.

    Returns: what (title, title_onnx, title_int8), products, accuracy (0 to 1), same (share of equal predictions),
        largest_difference (of any probability), model_mb.
    """
    import pandas as pd

    titles, rows, reference = _checked(titles), [], None
    if len(labels) != len(titles):
        raise DeployError(f"labels: {len(labels)} for {len(titles)} titles; give one for each")
    names = np.array(labels_of(models.classifier), dtype=object)
    for what in ("title", *EXPORTS):
        answer = load(what, models)
        found = np.concatenate([answer(titles[at : at + AT_ONCE]) for at in range(0, len(titles), AT_ONCE)])
        reference = found if reference is None else reference
        row = {
            "accuracy": float(np.mean(names[found.argmax(axis=1)] == np.asarray(labels, dtype=object))),
            "same": float(np.mean(found.argmax(axis=1) == reference.argmax(axis=1))),
            "largest_difference": float(np.abs(found - reference).max()),
            "model_mb": answer.weights_mb,
        }
        rows.append({"what": what, "products": len(titles), **row})
    return pd.DataFrame(rows)


# --- costs ---


@dataclass(frozen=True)
class Requests:
    """Products as they arrive over a network: titles, and where the catalogue has pictures a JPEG of each."""

    titles: list[str]
    jpegs: list[bytes]

    def __post_init__(self) -> None:
        _checked(self.titles)
        if self.jpegs and len(self.jpegs) != len(self.titles):
            raise DeployError(f"jpegs: {len(self.jpegs)} for {len(self.titles)} titles; give one for each, or none")


def requests_of(catalogue: "Catalogue", n: int = 256, seed: int = 0, side: int | None = None) -> Requests:
    """``n`` products of Dev (fewer where it has no more), those with a picture where the catalogue has pictures.

    Args: side: of the JPEGs in pixels, to which stored pictures are enlarged; None: as they are stored.

    Raises: DeployError: nothing to ask.
    """
    dev = catalogue.part("dev")
    if catalogue.images is not None:
        dev = dev[dev.image_row >= 0]
    if dev.empty:
        raise DeployError(f"{catalogue.name}: Dev has no product with a picture; there is nothing to ask")
    some = dev.sample(min(n, len(dev)), random_state=seed)
    pictures = catalogue.images[some.image_row.to_numpy()] if catalogue.images is not None else []
    return Requests(list(some.title), [as_jpeg(pixels, side) for pixels in pictures])


def as_jpeg(pixels: np.ndarray, side: int | None = None) -> bytes:
    """Pixels, uint8 (S, S, 3), as a JPEG of quality 90, ``side`` pixels wide (None: S)."""
    from PIL import Image

    picture, file = Image.fromarray(pixels), io.BytesIO()
    (picture if side is None else picture.resize((side, side))).save(file, "jpeg", quality=90)
    return file.getvalue()


def measure(
    models: Models,
    requests: Requests,
    batches: Sequence[int] = (1, AT_ONCE),
    devices: Sequence[str] = ("cpu",),
    repeats: int = 200,
    seconds: float = 20,
    threads: int = 1,
    seed: int = 0,
    memory: bool = True,
) -> "pd.DataFrame":
    """What each contestant's answers cost, from the encoded request to probabilities in the host's memory.

    In each round every contestant answers the same products, in an order drawn anew, so that a busy machine is unfair
    to none. ONNX runs on the CPU. Without JPEGs in ``requests`` or a vision tower only titles are answered.

    Args:
        batches: products answered at once.
        devices: torch's, such as "cpu" and "cuda".
        repeats: rounds for a batch on a device, fewer where they would take longer than ``seconds``, but 3 at least.
        threads: of one call on a CPU.
        seed: of which products are asked, and in which order.
        memory: False: peak_mb is left out (NaN), which takes a process for each contestant.

    Returns: one row per what, batch and device.
        p50_ms, p99_ms: of a call (p99 of fewer than 100 calls is about the slowest). items_per_s: products, one call
        after another. peak_mb: see `peak_memory`. model_mb: weights on disk. bytes_per_request: of one product, mean:
        the title in UTF-8, the JPEG, or both; no headers. gflops: of one product's matrix products, convolutions and
        attention, counted with the batch's padding; of an export those of its model, in int8 for the most part in
        title_int8. calls, threads.

    Raises: DeployError: nothing to measure, or no such device.
    """
    import pandas as pd
    import torch

    if not batches or min(batches) < 1 or repeats < 1 or not devices:
        raise DeployError(f"batches {list(batches)}, repeats {repeats}, devices {list(devices)}: at least 1 of each")
    if any(device.startswith("cuda") for device in devices) and not torch.cuda.is_available():
        raise DeployError("devices: cuda, but torch sees no GPU; leave it out")
    looks = models.vision is not None and bool(requests.jpegs)
    asked, rows = [what for what in WHAT if looks or what.startswith("title")], []
    if not (models.classifier / WORDS).is_file():
        asked.remove("title_words")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        flops = {}
        for device in devices:
            here = [what for what in asked if device == "cpu" or what not in EXPORTS]
            answers = {what: load(what, models, device, threads) for what in here}
            for batch in batches:
                draw = partial(_draw, requests, batch)
                for what in here:
                    if (what, batch) not in flops and not what.startswith("title_"):
                        rng = np.random.default_rng(seed)
                        calls = [count_flops(answers[what], *draw(rng)) for _ in range(max(1, COUNTED // batch))]
                        flops[what, batch] = np.mean(calls) / batch
                took = _interleaved(answers, draw, np.random.default_rng(seed), repeats, seconds)
                for what, times in took.items():
                    row = {"what": what, "batch": batch, "device": device, **_times(times, batch)}
                    row |= {"peak_mb": np.nan, "model_mb": answers[what].weights_mb}
                    row["bytes_per_request"] = _bytes(what, requests)
                    row["gflops"] = flops["title" if what.startswith("title") else what, batch] / 1e9
                    rows.append(row | {"calls": len(times), "threads": threads})
            del answers
    finally:
        torch.set_num_threads(before)
    table = pd.DataFrame(rows)[["what", "batch", "device", *COSTS, "calls", "threads"]]
    if memory:
        for (what, device), group in table.groupby(["what", "device"], sort=False):
            peak = peak_memory(what, models, requests, sorted(batches), device, threads)
            table.loc[group.index, "peak_mb"] = group["batch"].map(peak)
    return table


def _draw(requests: Requests, batch: int, rng: np.random.Generator) -> tuple[list[str], list[bytes]]:
    rows = rng.choice(len(requests.titles), batch, replace=batch > len(requests.titles))
    return [requests.titles[i] for i in rows], [requests.jpegs[i] for i in rows] if requests.jpegs else []


def _interleaved(
    answers: dict[str, Answer], draw: Callable, rng: np.random.Generator, repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of each contestant's calls, in rounds."""
    took: dict[str, list[float]] = {what: [] for what in answers}
    for answer in answers.values():
        for _ in range(WARM):
            answer(*draw(rng))
    started = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        request = draw(rng)
        for what in rng.permutation(list(answers)):
            at = time.perf_counter()
            answers[what](*request)  # ends when the probabilities are here, on a GPU too
            took[what].append(time.perf_counter() - at)
    return took


def _times(times: list[float], batch: int) -> dict[str, float]:
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
    return {"p50_ms": p50, "p99_ms": p99, "items_per_s": batch / np.mean(times)}


def _bytes(what: str, requests: Requests) -> float:
    title = np.mean([len(title.encode()) for title in requests.titles])
    picture = np.mean([len(jpeg) for jpeg in requests.jpegs]) if requests.jpegs else 0.0
    return float((what != "picture") * title + (not what.startswith("title")) * picture)


def count_flops(answer: Answer, titles: Sequence[str], jpegs: Sequence[bytes] = ()) -> int:
    """Operations of one call, by torch's own counter: a multiplication and an addition are two. Sums, norms, softmax
    and look-ups, which are few, are not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        answer(titles, jpegs)
    return counter.get_total_flops()


def peak_memory(
    what: str, models: Models, requests: Requests, batches: Sequence[int], device: str = "cpu", threads: int = 1
) -> dict[int, float]:
    """Peak memory of a process of its own that loads one contestant and answers batches: batch -> MB (1e6 bytes).

    On a CPU it is the resident set's (VmHWM in Linux), libraries included, as a container's limit must allow for it; of
    a small model they are nearly all. On a GPU it is what torch allocated there. Batches in ascending order.

    Raises: DeployError: the process failed; its last words.
    """
    from icssl_lib.runs import MALLOC

    vision = models.vision.model_dump(mode="json") if models.vision else None
    folders = {name: str(getattr(models, name) or "") for name in ("classifier", "fp32", "int8")}
    call = {
        "what": what,
        "models": folders | {"vision": vision, "pooling": models.pooling},
        "titles": requests.titles,
        "jpegs": [base64.b64encode(jpeg).decode() for jpeg in requests.jpegs] if not what.startswith("title") else [],
        "batches": sorted(batches),
        "device": device,
        "threads": threads,
    }
    # A study's processes keep what they free (runs.MALLOC), which a server would not.
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC}
    environment |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "icssl_lib.deploy"]
    done = subprocess.run(command, input=json.dumps(call), capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DeployError(f"{what} on {device}: the process that serves it failed: {last[:300]}")
    return {int(batch): mb for batch, mb in json.loads(done.stdout.splitlines()[-1]).items()}


def _peak_mb(device: str) -> float:
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    import resource  # where there is no /proc

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _serve(call: dict[str, Any]) -> dict[int, float]:
    """In a process of its own: load a contestant, answer, and say how much memory that took."""
    where, vision = call["models"], None
    if where["vision"] and not call["what"].startswith("title"):
        from icssl_lib.config import VisionConfig

        vision = VisionConfig.model_validate(where["vision"])
    folders = {name: Path(where[name]) if where[name] else None for name in ("classifier", "fp32", "int8")}
    models = Models(**folders, vision=vision, pooling=where["pooling"])
    if call["what"] not in EXPORTS:
        import torch

        torch.set_num_threads(call["threads"])
    answer, peaks = load(call["what"], models, call["device"], call["threads"]), {}
    requests = Requests(call["titles"], [base64.b64decode(jpeg) for jpeg in call["jpegs"]])
    for batch in call["batches"]:
        rng = np.random.default_rng(0)
        for _ in range(WARM):
            answer(*_draw(requests, batch, rng))
        peaks[batch] = _peak_mb(call["device"])
    return peaks


# --- accuracy against cost ---


def accuracy_against_cost(
    cost: "pd.DataFrame",
    results: "pd.DataFrame",
    study: "Study",
    fractions: Sequence[float] | None = None,
    batch: int = 1,
) -> "pd.DataFrame":
    """What each design costs on the first device, beside what its methods reach on Test.

    Args:
        cost: of `measure`.
        results: results.csv's rows of the dataset that was measured, of methods that are to be seen. A variant with
            towers of its own is left out, since it has costs of its own.
        fractions: of Train; None: the smallest and the largest of the run.

    Returns: one row per fraction, what and method that it serves: fraction, what, method, accuracy and accuracy_sd
        (over seeds), p50_ms, gflops, bytes_per_request. Where no method of the run is served so, method is "" and
        accuracy NaN. A method whose design was not measured is left out, with a warning.
    """
    import warnings

    import pandas as pd

    from icssl_lib.methods import entry_of
    from icssl_lib.metrics import summary

    known = summary(results)
    towers = {name for name, variant in study.variants.items() if variant.settings.keys() & {"text", "vision"}}
    named = [method for method in known["method"].unique() if method not in towers]
    entries = {method: entry_of(study, method) for method in named}
    serves = {m: "title_words" if entry.lexical else SERVES.get(entry.classifier) for m, entry in entries.items()}
    first = cost[(cost["batch"] == batch) & (cost["device"] == cost["device"].iloc[0])]
    if absent := [method for method, what in serves.items() if what and what not in set(first["what"])]:
        warnings.warn(f"not in the figure, since no cost was measured of what serves them: {absent}", stacklevel=2)
    rows = []
    for fraction in fractions or [known["fraction"].min(), known["fraction"].max()]:
        here = known[known["fraction"] == fraction].set_index("method")
        for row in first.itertuples():
            methods = [method for method, what in serves.items() if what == row.what and method in here.index]
            of = {"p50_ms": row.p50_ms, "gflops": row.gflops, "bytes_per_request": row.bytes_per_request}
            for method in methods or [""]:
                reached = here.loc[method, ["accuracy", "accuracy_sd"]].to_dict() if method else {}
                rows.append({"fraction": fraction, "what": row.what, "method": method, **reached, **of})
    columns = ["fraction", "what", "method", "accuracy", "accuracy_sd", "p50_ms", "gflops", "bytes_per_request"]
    return pd.DataFrame(rows).reindex(columns=columns)


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    print(json.dumps(_serve(json.load(sys.stdin))), file=answers, flush=True)


if __name__ == "__main__":
    main()
