"""A text-only classifier at work: served from its folder, and exported to ONNX.

What takes seconds to import (torch, transformers, scikit-learn) is imported in functions: an ONNX file needs none."""

import json
import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from icssl_lib.files import verify, written_whole

TOKENS, TERMS = ["input_ids", "attention_mask"], ["terms", "values"]


def settings_of(folder: Path) -> tuple[list[str], int]:
    """A classifier's labels, in the order of its outputs, and how many tokens it reads, special ones included."""
    try:
        verify(folder)
        config, tokenizer = (json.loads((folder / f"{n}config.json").read_text("utf-8")) for n in ("", "tokenizer_"))
        labels = [config["id2label"][i] for i in sorted(config["id2label"], key=int)]
        return labels, min(tokenizer["model_max_length"], config["max_position_embeddings"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no classifier ({error}); name a folder below runs/<study>/classifiers") from None


class TitleClassifier:
    """A kept classifier, by torch in float32, with its words' part where that lies beside it.
    Call: N titles -> probabilities, float32 (N, C), as one batch."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from icssl_lib.encoders import WithWords, load_head
        from icssl_lib.lexical import WEIGHTS, WORDS, Lexical

        self.labels, self.max_tokens = settings_of(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        pooled = (folder / "modules.json").is_file()
        first = partial(AutoModelForSequenceClassification.from_pretrained, dtype=torch.float32)
        self.model, self.words = (load_head if pooled else first)(folder), None
        if (folder / WORDS).is_file():
            self.words = Lexical.load(folder)
            self.model = WithWords(self.model, load_file(folder / WEIGHTS)["weight"])
        self.model.eval().requires_grad_(False).to(device)

    def inputs(self, titles: Sequence[str]) -> dict:
        """What the model reads of N titles, tensors: `TOKENS` (N, T) and, with words, `TERMS` (N, K)."""
        import torch

        options = {"padding": True, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        tokens, device = self.tokenizer(titles, **options), next(self.model.parameters()).device
        terms = map(torch.from_numpy, self.words.padded(titles)) if self.words else ()
        found = dict(zip([*TOKENS, *TERMS], [*(tokens[name] for name in TOKENS), *terms], strict=False))
        return {name: rows.to(device) for name, rows in found.items()}

    def __call__(self, titles: Sequence[str]) -> np.ndarray:
        from icssl_lib.encoders import logits

        return logits(self.model, self.inputs(titles)).softmax(dim=1).cpu().numpy()


def export_onnx(folder: Path, out: Path) -> Path:
    """Write a classifier as ``out/model.onnx``, float32, with its labels, tokenizer and terms beside it. Inputs:
    `TOKENS`, int64 (N, T) and, with words, `TERMS` (N, K), any N, T and K; output: logits (N, C)."""
    import torch

    kept = TitleClassifier(folder)
    inputs = kept.inputs(["one", "one more"])
    shapes = dict.fromkeys(inputs, dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC))
    options = {"output_names": ["logits"], "dynamic_shapes": shapes, "verbose": False}
    with warnings.catch_warnings(action="ignore"):  # on names of axes
        program = torch.onnx.export(kept.model, (), kwargs=inputs, input_names=list(inputs), dynamo=True, **options)
    weights = shutil.ignore_patterns("*.safetensors", "SHA256SUMS", "modules.json", "[0-9]_*")
    shutil.copytree(folder, out, ignore=weights, dirs_exist_ok=True)
    with written_whole(out / "model.onnx") as part:
        program.save(str(part))
    return out
