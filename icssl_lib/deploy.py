"""A text-only classifier at work: served from its folder, and exported to ONNX.

What takes seconds to import (torch, transformers, scikit-learn) is imported in functions: an ONNX file needs none."""

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from icssl_lib.files import verify, written_whole

TOKENS = ["input_ids", "attention_mask"]


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
    """A kept classifier, by torch in float32, with its words' part where that lies beside it (words: False leaves it
    out, as an export does). Call: N titles -> probabilities, float32 (N, C), as one batch."""

    def __init__(self, folder: Path, device: str = "cpu", words: bool = True) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from icssl_lib.encoders import load_head
        from icssl_lib.lexical import WORDS, Lexical

        self.labels, self.max_tokens = settings_of(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        pooled = (folder / "modules.json").is_file()
        first = partial(AutoModelForSequenceClassification.from_pretrained, dtype=torch.float32)
        self.model = (load_head if pooled else first)(folder).eval().requires_grad_(False).to(device)
        self.words, self.weight = Lexical.load(folder) if words and (folder / WORDS).is_file() else (None, None)

    def __call__(self, titles: Sequence[str]) -> np.ndarray:
        import pandas as pd
        from scipy.special import softmax

        from icssl_lib.encoders import logits

        options = {"padding": True, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        tokens = self.tokenizer(titles, **options).to(next(self.model.parameters()).device)
        scores = logits(self.model, {name: tokens[name] for name in TOKENS}).cpu().numpy()
        if self.words is not None:
            scores = scores + self.words(pd.DataFrame({"title": titles})) @ self.weight.T
        return softmax(scores, axis=1).astype(np.float32)


def export_onnx(folder: Path, out: Path) -> Path:
    """Write a classifier as ``out/model.onnx``, float32, with its labels and tokenizer beside it. Inputs: `TOKENS`,
    int64 (N, T), any N and T; output: logits (N, C)."""
    import torch

    kept = TitleClassifier(folder, words=False)
    inputs = dict(kept.tokenizer(["one", "one more"], padding=True, return_tensors="pt", return_token_type_ids=False))
    axes = {0: torch.export.Dim("titles", min=1, max=4096), 1: torch.export.Dim("tokens", min=1, max=kept.max_tokens)}
    options = {"output_names": ["logits"], "dynamic_shapes": dict.fromkeys(TOKENS, axes), "verbose": False}
    with warnings.catch_warnings(action="ignore"):  # on names of axes
        program = torch.onnx.export(kept.model, (), kwargs=inputs, input_names=TOKENS, dynamo=True, **options)
    getattr(kept.model, "backbone", kept.model).config.save_pretrained(out)
    kept.tokenizer.save_pretrained(out)
    with written_whole(out / "model.onnx") as part:
        program.save(str(part))
    return out
