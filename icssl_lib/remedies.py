"""Remedies and alternatives beside the paper: wrong labels, rare classes, masked words."""

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling

from icssl_lib.encoders import ModelError, explained
from icssl_lib.lexical import WORD


def confusable(train: pd.DataFrame, labels: list[str]) -> np.ndarray:
    """What a class is taken for by a cheap reader of titles: (C, C), for the class of each row a distribution over the
    others. It is TF-IDF's confusions in 5-fold cross-validation on all of Train, and one more in each row, spread."""
    reader = make_pipeline(TfidfVectorizer(token_pattern=WORD), LogisticRegression(C=10, max_iter=2000))
    guess = cross_val_predict(reader, train["title"], train["label"], cv=KFold(5, shuffle=True, random_state=0))
    at = [pd.Index(labels).get_indexer(names) for names in (train["label"], guess)]
    counts = np.full((len(labels), len(labels)), 1 / (len(labels) - 1))
    np.add.at(counts, tuple(at), 1)
    np.fill_diagonal(counts, 0)
    return counts / counts.sum(axis=1, keepdims=True)


def flipped(label: pd.Series, labels: list, share: float, seed: int, towards: np.ndarray | None = None) -> pd.Series:
    """Noise: each label (N,) is, with probability ``share``, another one of ``labels``, drawn uniformly or by its row
    of ``towards`` (`confusable`), by seed and position alone: methods and nested fractions get the same ones."""
    at = pd.Index(labels).get_indexer(label)
    wrong = np.random.default_rng([seed, 3]).random(len(label)) < share
    generator = np.random.default_rng([seed, 4])
    if towards is None:
        other = (at + generator.integers(1, len(labels), len(label))) % len(labels)
    else:
        upto = towards.cumsum(axis=1)
        point = upto[at, -1] * generator.random(len(label))  # rounded, a row may end below 1
        other = np.array([upto[row].searchsorted(x, side="right") for row, x in zip(at, point, strict=True)])
    return pd.Series(np.array(labels, dtype=object)[np.where(wrong, other, at)], label.index)


def balanced(target: Tensor, generator: torch.Generator) -> Tensor:
    """As many rows as ``target`` (N,) has, drawn so that each class comes as often as any other that is there."""
    weight = 1 / target.bincount()[target].double()
    return torch.multinomial(weight, len(target), True, generator=generator)


class MaskedWords(nn.Module):
    """Guesses hidden words of titles (Devlin et al., 2019) by the text tower's encoder and a masked language model's
    head, tied to the encoder's embeddings where the model's was. Call: tokens (N, T) -> (N, 2): the summed
    cross-entropy, in nats, of a title's hidden words, and how many they are."""

    def __init__(self, encoder: nn.Module, whole: nn.Module, tokenizer) -> None:
        super().__init__()
        setattr(whole, whole.base_model_prefix, encoder)
        whole.tie_weights()
        self.whole, self.hide = whole, DataCollatorForLanguageModeling(tokenizer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        read, labels = (x.to(input_ids.device) for x in self.hide.torch_mask_tokens(input_ids.cpu().clone()))
        scores = self.whole(input_ids=read, attention_mask=attention_mask).logits.float()  # (N, T, V)
        nats = nn.functional.cross_entropy(scores.transpose(1, 2), labels, reduction="none").sum(dim=1)  # (N,)
        return torch.stack([nats, (labels != -100).sum(dim=1).to(nats.dtype)], dim=1)  # -100: a word was not hidden


def load_words(model: str, encoder: nn.Module, tokenizer) -> MaskedWords:
    """With the head of a hub name or folder, or a fresh one. Raises: ModelError: no such head, or no mask token."""
    if tokenizer.mask_token_id is None:
        raise ModelError(f"text.model: the tokenizer of '{model}' has no mask token, which masked language models need")
    with explained(f"text.model: '{model}' cannot be a masked language model"):
        return MaskedWords(encoder, AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32), tokenizer)
