"""What an answer costs: titles alone, with pictures, and exported. Notebook 06 calls this.

It is also what a measured process imports, so torch and pandas are imported where they are needed: one that serves an
ONNX file holds no torch, and pandas and scikit-learn only for a classifier with TF-IDF.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from icssl_lib.deploy import TERMS, TOKENS, TitleClassifier, settings_of
from icssl_lib.files import written_whole
from icssl_lib.images import decode

if TYPE_CHECKING:
    import pandas as pd

    from icssl_lib.catalogue import Catalogue
    from icssl_lib.config import Study, VisionConfig

DESIGNS = {
    "title": "Title",
    "title_onnx": "Title, ONNX",
    "title_int8": "Title, ONNX int8",
    "title_words": "Title + TF-IDF",
    "picture": "Picture",
    "late": "Title + picture",
}
EXPORTS = ("title_onnx", "title_int8")  # onnxruntime serves them, on the CPU
SERVES = {"finetune": "title", "recommended": "title_words"}  # what serves a kind of classifier
COSTS = ["p50_ms", "p99_ms", "items_per_s", "peak_mb", "model_mb", "bytes_per_request", "gflops"]
WARM = 2  # calls before any is timed: the first ones fill caches
COUNTED = 16  # products at least over which operations are averaged, since titles differ in length

Answer = Callable[[Sequence[str], Sequence[bytes]], np.ndarray]  # titles, JPEGs -> probabilities (N, C)


class OnnxClassifier:
    """An export, by onnxruntime on a CPU. Call: N titles -> probabilities, float32 (N, C), as one batch."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        self.labels, max_tokens = settings_of(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_tokens)
        self.tokenizer.enable_padding()  # with any token: the model is told what is padding
        self.words = None
        if len(self.session.get_inputs()) > len(TOKENS):
            from icssl_lib.lexical import Lexical  # with scikit-learn, which an encoder alone need not wait for

            self.words = Lexical.load(folder)

    def __call__(self, titles: Sequence[str]) -> np.ndarray:
        rows = self.tokenizer.encode_batch(titles)
        tokens = [np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])]  # (N, T)
        terms = self.words.padded(titles) if self.words else ()  # (N, K)
        (logits,) = self.session.run(["logits"], dict(zip([*TOKENS, *TERMS], [*tokens, *terms], strict=False)))
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)


def without_words(folder: Path, device: str = "cpu") -> TitleClassifier:
    """The encoder's part of a classifier."""
    found = TitleClassifier(folder, device)
    if found.words:
        found.model, found.words = found.model.model, None
    return found


def quantize_int8(fp32: Path, out: Path) -> Path:
    """Write what `export_onnx` wrote with weights in int8, a scale per channel and 7 bits: with 8, sums overflow on x86
    without VNNI, and the same file would answer differently there (onnxruntime's documentation of quantization)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    shutil.copytree(fp32, out, ignore=shutil.ignore_patterns("model.onnx*"), dirs_exist_ok=True)
    with written_whole(out / "model.onnx") as part:
        quantize_dynamic(fp32 / "model.onnx", part, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    return out


@dataclass(frozen=True)
class Models:
    """Where the contestants come from.

    classifier: the text-only classifier, a Hugging Face folder, with TF-IDF in it where the method has it. fp32, int8:
    its exports. vision: the tower that the models with pictures get, None where titles have no pictures.
    """

    classifier: Path
    fp32: Path
    int8: Path
    vision: "VisionConfig | None" = None

    def designs(self, pictures: bool) -> list[str]:
        """Those in DESIGNS that can be served from here."""
        words, pictures = (self.classifier / "lexical.json").is_file(), pictures and self.vision is not None
        able = dict.fromkeys(("picture", "late"), pictures) | {"title_words": words}
        return [what for what in DESIGNS if able.get(what, True)]


@dataclass(frozen=True)
class Requests:
    """Products as they arrive over a network: titles, and where the catalogue has pictures a JPEG of each."""

    titles: list[str]
    jpegs: list[bytes]

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[list[str], list[bytes]]:
        rows = rng.choice(len(self.titles), batch, replace=batch > len(self.titles))
        return [self.titles[i] for i in rows], [self.jpegs[i] for i in rows] if self.jpegs else []

    def size(self, what: str) -> float:
        """Mean bytes of a product: the title in UTF-8, the JPEG, or both, as ``what`` needs them; no headers."""
        title = np.mean([len(title.encode()) for title in self.titles])
        picture = np.mean([len(jpeg) for jpeg in self.jpegs]) if self.jpegs else 0.0
        return float((what != "picture") * title + (not what.startswith("title")) * picture)


def requests_of(catalogue: "Catalogue", n: int = 256, seed: int = 0, side: int | None = None) -> Requests:
    """``n`` products of Dev (fewer where it has no more), those with a picture where the catalogue has pictures.

    Args: side: of the JPEGs in pixels, to which stored pictures are enlarged; None: as they are stored.

    Raises: ValueError: there is no such product.
    """
    dev = catalogue.part("dev")
    if catalogue.images is not None:
        dev = dev[dev.image_row >= 0]
    if dev.empty:
        raise ValueError(f"{catalogue.name}: Dev has no product with a picture; there is nothing to ask")
    some = dev.sample(min(n, len(dev)), random_state=seed)
    pictures = catalogue.images[some.image_row.to_numpy()] if catalogue.images is not None else []
    return Requests(list(some.title), [as_jpeg(pixels, side) for pixels in pictures])


def as_jpeg(pixels: np.ndarray, side: int | None = None) -> bytes:
    """Pixels, uint8 (S, S, 3), as a JPEG of quality 90, ``side`` pixels wide (None: S)."""
    picture, file = Image.fromarray(pixels), io.BytesIO()
    (picture if side is None else picture.resize((side, side))).save(file, "jpeg", quality=90)
    return file.getvalue()


# --- what answers ---


class PictureClassifier:
    """Pictures, or titles and pictures, to probabilities. Call: N titles and JPEGs -> float32 (N, C), as one batch.

    Heads that see pictures have random weights, and ``late`` averages with equal weights: what an answer costs does not
    depend on what a weight is. Pictures are decoded and resized in the call.

    Args: what: picture or late.
    """

    def __init__(self, what: str, models: Models, device: str = "cpu") -> None:
        import torch

        from icssl_lib.encoders import VisionTower, load_vision

        self.title = without_words(models.classifier, device) if what == "late" else None
        self.size, self.device, labels = models.vision.image_size, device, settings_of(models.classifier)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = VisionTower(load_vision(models.vision), len(labels), depth=1, size=self.size)
            self.model = tower.eval().requires_grad_(False).to(device)

    def __call__(self, titles: Sequence[str], jpegs: Sequence[bytes]) -> np.ndarray:
        import torch

        pixels = torch.from_numpy(np.stack([decode(jpeg, self.size) for jpeg in jpegs])).to(self.device)
        with torch.inference_mode():
            answer = self.model(pixels).softmax(-1).cpu().numpy()
        return (answer + self.title(titles)) / 2 if self.title else answer


def load(what: str, models: Models, device: str = "cpu", threads: int = 1) -> Answer:
    """A contestant, a name in DESIGNS."""
    if what in ("picture", "late"):
        return PictureClassifier(what, models, device)
    if what in EXPORTS:
        answer = OnnxClassifier(models.fp32 if what == "title_onnx" else models.int8, threads)
    else:
        answer = (TitleClassifier if what == "title_words" else without_words)(models.classifier, device)
    return lambda titles, jpegs=(): answer(titles)


def model_mb(what: str, models: Models, answer: Answer) -> float:
    """Weights as files hold them, in 1e6 bytes."""
    folder = {"title_onnx": models.fp32, "title_int8": models.int8}.get(what, models.classifier)
    names = "model.onnx*" if what in EXPORTS else "*.safetensors" if what == "title_words" else "model*.safetensors"
    titles = sum(file.stat().st_size for file in folder.glob(names)) * (what != "picture")
    towers = answer.model.state_dict().values() if isinstance(answer, PictureClassifier) else []
    return (titles + sum(weights.nbytes for weights in towers)) / 1e6


# --- costs ---


def measure(
    models: Models, requests: Requests, batches: Sequence[int] = (1, 32), device: str = "cpu",
    repeats: int = 200, seconds: float = 20, threads: int = 1, memory: bool = True,
) -> "pd.DataFrame":  # fmt: skip
    """What each contestant's answers cost, from the encoded request to probabilities in the host's memory.

    In each round every contestant answers the same products, in an order drawn anew, so that a busy machine is unfair
    to none. Without JPEGs in ``requests`` or a vision tower only titles are answered; exports only on the CPU.

    Args:
        batches: products answered at once, ascending.
        repeats: rounds for a batch, fewer where they would take longer than ``seconds``, but 3 at least.
        threads: of one call on a CPU.
        memory: False leaves peak_mb out (NaN), which takes a process for each contestant.

    Returns: one row per what (design is its readable name) and batch.
        p50_ms, p99_ms: of a call (p99 of fewer than 100 calls is about the slowest). items_per_s: products, one call
        after another. peak_mb: see `peak_memory`. model_mb: weights on disk. bytes_per_request: see `Requests`.
        gflops: of one product's matrix products, convolutions and attention, with the batch's padding; of an export
        those of its model. calls, threads.
    """
    import pandas as pd
    import torch

    torch.set_num_threads(threads)
    names = [w for w in models.designs(bool(requests.jpegs)) if device == "cpu" or w not in EXPORTS]
    answers = {what: load(what, models, device, threads) for what in names}
    peaks = {w: peak_memory(w, models, requests, batches, device, threads) if memory else {} for w in names}
    rows = []
    for batch in batches:
        took = interleaved(answers, requests, batch, repeats, seconds)
        flops = {w: count_flops(answers[w], requests, batch) for w in names if not w.startswith("title_")}
        for what, times in took.items():
            p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
            costs = [p50, p99, batch / np.mean(times), peaks[what].get(batch, np.nan)]
            costs += [model_mb(what, models, answers[what]), requests.size(what), flops.get(what, flops["title"]) / 1e9]
            about = {"calls": len(times), "threads": threads, "design": DESIGNS[what]}
            rows.append({"what": what, "batch": batch, "device": device} | dict(zip(COSTS, costs, strict=True)) | about)
    return pd.DataFrame(rows)


def interleaved(
    answers: dict[str, Answer], requests: Requests, batch: int, repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of each contestant's calls, in rounds."""
    took, rng = {what: [] for what in answers}, np.random.default_rng(0)
    for answer in answers.values():
        for _ in range(WARM):
            answer(*requests.draw(batch, rng))
    started = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        request = requests.draw(batch, rng)
        for what in rng.permutation(list(answers)):
            at = time.perf_counter()
            answers[what](*request)  # ends when the probabilities are here, on a GPU too
            took[what].append(time.perf_counter() - at)
    return took


def count_flops(answer: Answer, requests: Requests, batch: int) -> float:
    """Operations per product, by torch's own counter: a multiplication and an addition are two. Sums, norms, softmax
    and look-ups, which are few, are not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    rng, calls = np.random.default_rng(0), max(1, COUNTED // batch)
    with FlopCounterMode(display=False) as counter:
        for _ in range(calls):
            answer(*requests.draw(batch, rng))
    return counter.get_total_flops() / calls / batch


def agreement(folder: Path, exports: Mapping[str, Path], titles: Sequence[str], labels: Sequence[str]) -> list[dict]:
    """A row for a classifier ("title" or "title_words") and for each of its exports: what, products, accuracy (0 to 1),
    same (share of equal predictions), largest_difference (of any probability). ``labels`` are looked at: take Dev's."""
    whole = TitleClassifier(folder)
    classifiers = {"title_words" if whole.words else "title": whole}
    classifiers |= {what: OnnxClassifier(export) for what, export in exports.items()}
    rows, own = [], None
    for what, classifier in classifiers.items():
        answers = np.concatenate([classifier(titles[at : at + 32]) for at in range(0, len(titles), 32)])
        own = answers if own is None else own
        best, gap = answers.argmax(axis=1), np.abs(answers - own).max()
        right = (np.array(classifier.labels)[best] == np.array(labels)).mean()
        same = (best == own.argmax(axis=1)).mean()
        rows.append({"what": what, "products": len(titles), "accuracy": right, "same": same, "largest_difference": gap})
    return rows


def peak_memory(
    what: str, models: Models, requests: Requests, batches: Sequence[int], device: str = "cpu", threads: int = 1
) -> dict[int, float]:
    """Peak memory of a process of its own that loads one contestant and answers batches: batch -> MB (1e6 bytes).

    On a CPU it is the resident set's (VmHWM in Linux), libraries included, as a container's limit must allow for it; of
    a small model they are nearly all. On a GPU it is what torch allocated there. Batches in ascending order.
    """
    if what.startswith("title"):  # neither pictures nor their tower reach a process that does not see them
        models, requests = replace(models, vision=None), replace(requests, jpegs=[])
    call = pickle.dumps((what, models, requests, batches, device, threads))
    # A study's processes keep what they free (dag.MALLOC), which a server would not.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import serving; serving.main()"
    done = subprocess.run([sys.executable, "-c", code], input=call, stdout=subprocess.PIPE, check=True, env=environment)
    return dict(zip(batches, json.loads(done.stdout.splitlines()[-1]), strict=True))


def main() -> None:
    """In a process of its own: load a contestant, answer, and print how much memory that took, a number per batch."""
    what, models, requests, batches, *where = pickle.load(sys.stdin.buffer)  # noqa: S301 - `peak_memory` wrote it
    answer, rng, peaks = load(what, models, *where), np.random.default_rng(0), []
    for batch in batches:
        for _ in range(WARM):
            answer(*requests.draw(batch, rng))
        peaks.append(peak_mb(where[0]))
    print(json.dumps(peaks))


def peak_mb(device: str = "cpu") -> float:
    """Of this process until now, in 1e6 bytes; NaN where there is no /proc."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")  # of this program alone, where getrusage counts what its parent had before
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6 if status.exists() else np.nan


# --- accuracy against cost ---


def accuracy_against_cost(
    cost: "pd.DataFrame", results: "pd.DataFrame", study: "Study", batch: int = 1
) -> "pd.DataFrame":
    """What each design costs on the first device, beside what its methods reach on Test with the fewest and all labels.

    Args:
        cost: of `measure`.
        results: results.csv's rows of the dataset that was measured, of methods that are to be seen. A variant with
            towers of its own is left out, since it has costs of its own.

    Returns: one row per fraction, what and method that it serves. Where no method of the run is served so, method
        and accuracy are NaN. A method whose design was not measured is left out, with a warning.
    """
    import pandas as pd

    from icssl_lib.methods import entry_of
    from icssl_lib.metrics import summary

    known = summary(results)
    towers = {name for name, variant in study.variants.items() if variant.settings.keys() & {"text", "vision"}}
    entries = {m: entry_of(study, m) for m in known["method"].unique() if m not in towers}
    serves = {m: SERVES.get(entry.classifier) for m, entry in entries.items()}
    for m, entry in entries.items():
        if entry.classifier in ("frozen", "self_taught") and "picture" in entry.features:
            serves[m] = "late" if "title" in entry.features else "picture"
    served = pd.DataFrame({"method": serves.keys(), "what": serves.values()}).dropna()
    first = cost[(cost["batch"] == batch) & (cost["device"] == cost["device"].iloc[0])]
    if absent := list(served[~served["what"].isin(first["what"])]["method"]):
        warnings.warn(f"not in the figure, since no cost was measured of what serves them: {absent}", stacklevel=2)
    parts = []
    for fraction in sorted({known["fraction"].min(), known["fraction"].max()}):
        reached = served.merge(known[known["fraction"] == fraction][["method", "accuracy", "accuracy_sd"]])
        parts.append(first.merge(reached, on="what", how="left").assign(fraction=fraction))
    costs = ["p50_ms", "gflops", "bytes_per_request"]
    return pd.concat(parts)[["fraction", "what", "design", "method", "accuracy", "accuracy_sd", *costs]]
