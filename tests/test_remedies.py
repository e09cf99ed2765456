"""Wrong labels, rare classes, unlabelled titles and masked words, each against a plain version."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from scipy.stats import chisquare
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    ModernBertForMaskedLM,
)

from icssl_lib import classify as classify_stage
from icssl_lib.catalogue import train_subset
from icssl_lib.classify import classify
from icssl_lib.config import AdaptConfig, PretrainConfig, Run
from icssl_lib.encoders import ModelError, TextTower, Towers, load_text, tokenize
from icssl_lib.fast.gradcache import cached
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.finetune import Start
from icssl_lib.methods import mlm
from icssl_lib.remedies import balanced, confusable, flipped, load_words
from icssl_lib.sources.synthetic.pretrain import text_shape


@pytest.fixture
def read(tiny_text, tiny_vision):
    """``read(method, catalogue, **finetune)``: predictions of a classifier of the toys."""

    def predictions(method, catalogue, keep=None, **settings):
        study = toys.study(tiny_text, tiny_vision, finetune=settings)
        start = Start(str(tiny_text), study.vision)
        return classify(Run("toy", method, 0), 1.0, catalogue, study, start, keep).predictions

    return predictions


def test_flipped_labels_are_wrong_and_as_many_as_asked():
    labels = ["a", "b", "c", "d"]
    clean = pd.Series(np.random.default_rng(0).choice(labels, 20000), index=np.arange(20000)[::-1])
    noisy = flipped(clean, labels, 0.2, 0)
    wrong = noisy != clean
    assert abs(wrong.mean() - 0.2) < 4 * math.sqrt(0.16 / 20000)
    into = pd.crosstab(clean[wrong], noisy[wrong], normalize="index").to_numpy()
    assert np.allclose(into[~np.eye(4, dtype=bool)], 1 / 3, atol=0.05)
    assert flipped(clean, labels, 0.2, 0).equals(noisy)
    assert flipped(clean[:500], labels, 0.2, 0).equals(noisy[:500])  # a smaller fraction has the same wrong labels
    assert not flipped(clean, labels, 0.2, 1).equals(noisy)


def test_labels_are_flipped_towards_what_a_matrix_says():
    rows = np.array([[0, 0.7, 0.2, 0.1], [0.5, 0, 0.5, 0], [0, 0, 0, 1], [1 / 3, 1 / 3, 1 / 3, 0]])
    labels = ["a", "b", "c", "d"]
    clean = pd.Series(np.random.default_rng(0).choice(labels, 40000))
    noisy = flipped(clean, labels, 0.3, 0, rows)
    wrong = noisy != clean
    assert abs(wrong.mean() - 0.3) < 4 * math.sqrt(0.21 / 40000)
    assert wrong.equals(flipped(clean, labels, 0.3, 0) != clean)  # the same products as without a matrix
    counts = pd.crosstab(clean[wrong], noisy[wrong]).to_numpy()
    assert (counts[rows == 0] == 0).all()  # the diagonal too: nothing is flipped to itself
    expected = (rows * counts.sum(axis=1, keepdims=True))[rows > 0]
    assert chisquare(counts[rows > 0], expected, ddof=3).pvalue > 0.01  # of each row the sum is given
    assert flipped(clean[:500], labels, 0.3, 0, rows).equals(noisy[:500])
    assert not flipped(clean, labels, 0.3, 1, rows).equals(noisy)


def test_classes_are_confusable_as_tfidf_confuses_them(toy):
    """Against a loop over the folds; `rare` has fewer products than there are folds."""
    train = pd.concat([toy.part("train"), toy.part("ssl")])[["title", "label"]].reset_index(drop=True)
    train.loc[[4, 50], "label"] = "rare"
    labels = sorted(set(train.label))
    found, guess = confusable(train, labels), train.label.copy()
    for known, held in KFold(5, shuffle=True, random_state=0).split(train.title):
        reader = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(C=10, max_iter=2000))
        guess[held] = reader.fit(train.title[known], train.label[known]).predict(train.title[held])
    counts = confusion_matrix(train.label, guess, labels=labels)
    assert counts.sum() - np.trace(counts) > 20
    for i in range(len(labels)):
        row = [counts[i, j] + 1 / (len(labels) - 1) if j != i else 0 for j in range(len(labels))]
        assert found[i] == pytest.approx(np.array(row) / sum(row))
    assert (found[~np.eye(len(labels), dtype=bool)] > 0).all()


def test_noise_reaches_every_classifier_and_neither_dev_nor_test(toy, read):
    noises = {}, {"label_noise": 0.9}, {"label_noise": 0.9, "noise_towards": "similar"}
    for method in ("tfidf", "probe"):
        clean, *spoilt = (read(method, toy, **noise) for noise in noises)
        assert all(clean.label.equals(table.label) for table in spoilt)
        assert not any(clean.predicted.equals(table.predicted) for table in spoilt)
        assert not spoilt[0].predicted.equals(spoilt[1].predicted)


@pytest.mark.parametrize("towards", ["any", "similar"])
def test_all_methods_and_fractions_get_the_same_wrong_labels(towards, toy, tiny_text, tiny_vision, monkeypatch):
    study, learnt = toys.study(tiny_text, tiny_vision, finetune={"label_noise": 0.5, "noise_towards": towards}), []
    monkeypatch.setattr(classify_stage, "flipped", lambda *of: learnt.append(flipped(*of)) or learnt[-1])
    for method, fraction in (("tfidf", 1.0), ("origin", 1.0), ("probe", 0.5)):
        classify(Run("toy", method, 0), fraction, toy, study, Start(str(tiny_text), study.vision))
    whole, same, half = learnt
    assert whole.equals(same)
    assert half.equals(whole[: len(half)])
    assert len(half) == len(whole) / 2
    clean = train_subset(toy.part("train"), 1.0, 0).label
    assert 0.25 < (whole != clean).mean() < 0.75


@pytest.fixture
def skewed(toy):
    """The toys, seven in ten of Train's products called mug."""
    train = toy.products["part"] == "train"
    products = toy.products.copy()
    products.loc[train, "label"] = ["mug"] * (train.sum() - 9) + ["lamp", "rug", "vase"] * 3
    return dataclasses.replace(toy, products=products)


@pytest.mark.parametrize("name", ["logit_adjusted", "class_balanced"])
def test_each_remedy_is_less_sure_of_the_frequent_class(name, skewed, read):
    called = []
    for imbalance in (name, "none"):
        table = read("origin", skewed, imbalance=imbalance, epochs=10)
        called.append(((table.predicted == "mug").sum(), table.confidence[table.predicted == "mug"].mean()))
    assert called[0] < called[1]  # less often, or as often and less surely


def test_draws_are_balanced():
    target = torch.tensor([0] * 90 + [2] * 10)
    drawn = target[torch.cat([balanced(target, torch.Generator().manual_seed(seed)) for seed in range(40)])]
    assert len(drawn) == 4000
    assert (drawn == 2).float().mean() == pytest.approx(0.5, abs=0.03)


@pytest.fixture(scope="module")
def guessers(tiny_text, tmp_path_factory):
    """Folders that hold a head for masked language modelling: the toys' BERT, and the quick study's kind."""
    folder, tokenizer = tmp_path_factory.mktemp("guessers"), AutoTokenizer.from_pretrained(tiny_text)
    shape = PretrainConfig(hidden_size=32, layers=2, heads=2)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    torch.manual_seed(3)
    modernbert = ModernBertForMaskedLM(text_shape(shape, len(tokenizer), **special))
    for model in (AutoModelForMaskedLM.from_pretrained(tiny_text), modernbert):
        for name, weights in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weights)  # a trained head has some
        model.save_pretrained(folder / model.config.model_type)
        tokenizer.save_pretrained(folder / model.config.model_type)
    return {name: folder / name for name in ("bert", "modernbert")}


def guessing(folder, titles, seed: int = 0):
    """Towers with a head that guesses words, and tokens to guess in."""
    backbone, tokenizer = load_text(str(folder))
    torch.manual_seed(seed)
    words = load_words(str(folder), backbone, tokenizer)
    return Towers(TextTower(backbone, "mean", 16, 2), None, words), tokenize(tokenizer, titles, 8), tokenizer


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_loss_is_that_of_transformers_own_model_with_the_folders_head(name, quick, guessers, toy):
    reference = AutoModelForMaskedLM.from_pretrained(guessers[name]).eval()
    towers, tokens, tokenizer = guessing(guessers[name], list(toy.part("ssl").title)[:20])
    with fast(towers.eval(), quick):
        torch.manual_seed(1)
        loss = mlm(towers, tokens, AdaptConfig())
    torch.manual_seed(1)  # the same words are hidden again
    special = torch.isin(tokens["input_ids"], torch.tensor(tokenizer.all_special_ids))
    words = tokens["attention_mask"].bool() & ~special
    read, labels = DataCollatorForLanguageModeling(tokenizer).torch_mask_tokens(tokens["input_ids"].clone(), ~words)
    assert (labels != -100).any(dim=1).sum() not in (0, 20)  # of titles some have no hidden word
    expected = reference(input_ids=read, attention_mask=tokens["attention_mask"], labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_gradients_reach_encoder_and_head_and_the_output_layer_is_the_embeddings(name, guessers, toy):
    towers, tokens, _ = guessing(guessers[name], list(toy.part("ssl").title))
    mlm(towers, tokens, AdaptConfig()).backward()
    trained = {n: p for n, p in towers.named_parameters() if "pooler" not in n and "projection" not in n}
    assert len(trained) > 10
    for parameter_name, parameter in trained.items():
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.ndim == 1 or parameter.grad.abs().max() > 0, parameter_name
    decoder = next(p for n, p in towers.words.named_parameters(remove_duplicate=False) if n.endswith("decoder.weight"))
    assert decoder is towers.text.backbone.get_input_embeddings().weight


def test_a_folder_without_a_head_gets_a_fresh_one_of_the_seed(tiny_text):
    heads = [guessing(tiny_text, ["alma mug"], seed)[0].words for seed in (0, 0, 1)]
    one, same, other = (torch.cat([p.detach().flatten() for p in head.parameters()]) for head in heads)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_batch_without_a_word_has_no_loss(guessers):
    towers, tokens, _ = guessing(guessers["bert"], ["", ""])  # special tokens alone
    loss = mlm(towers, tokens, AdaptConfig())
    loss.backward()
    assert loss == 0
    assert towers.text.backbone.get_input_embeddings().weight.grad.abs().max() == 0


def test_chunks_guess_as_the_whole_batch(guessers, toy, tiny_text, tiny_vision):
    accelerator, gradients = make_accelerator(toys.study(tiny_text, tiny_vision).runtime), []
    for chunk in (None, 24):  # one chunk draws as the whole batch does
        towers, tokens, _ = guessing(guessers["bert"], list(toy.part("ssl").title)[:24])
        torch.manual_seed(5)
        cached(accelerator, chunk)(towers.eval(), tokens, lambda model, batch: mlm(model, batch, AdaptConfig()))
        gradients.append({name: p.grad for name, p in towers.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_what_cannot_guess_words_is_named(tiny_text):
    backbone, tokenizer = load_text(str(tiny_text))
    with pytest.raises(ModelError, match="cannot be a masked language model"):
        load_words(str(tiny_text / "absent"), backbone, tokenizer)
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="has no mask token"):
        load_words(str(tiny_text), backbone, tokenizer)
