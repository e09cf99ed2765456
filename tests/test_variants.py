"""What goes beyond the paper: variants, other losses and positives, label noise, imbalance, consistency, teaching."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from safetensors.torch import load_file
from test_config import write
from test_losses import cosine, vectors
from torch.nn.functional import interpolate

from icssl_lib import finetune, losses, report, runs
from icssl_lib.adapt import ImageSource, adapt, load_towers, make_accelerator, make_vision, nearest_pictures, save
from icssl_lib.config import ConfigError, load_config
from icssl_lib.encoders import ModelError, load_vision
from icssl_lib.finetune import classify, classify_fractions, flipped, uda
from icssl_lib.methods import METHODS, adapted_by, entry_of
from icssl_lib.runs import check_methods, digest, piece


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


def with_variants(study, **variants):
    raw = study.model_dump() | {"variants": variants, "methods": [*study.methods, *variants]}
    return type(study).model_validate(raw)


def tuned(study, **settings):
    return study.model_copy(update={"finetune": study.finetune.model_copy(update=settings)})


# --- variants


def test_a_variant_is_its_method_under_other_settings(study):
    varied = with_variants(study, hot={"of": "convirt", "adapt": {"temperature": 1.0}, "finetune": {"epochs": 7}})
    assert varied.of("convirt") is varied
    own = varied.of("hot")
    assert own.adapt == study.adapt.model_copy(update={"temperature": 1.0})
    assert own.finetune == study.finetune.model_copy(update={"epochs": 7})
    assert (own.text, own.vision, own.runtime) == (study.text, study.vision, study.runtime)
    assert entry_of(varied, "hot") is METHODS["convirt"]


def test_only_a_variant_that_changes_adaptation_has_an_encoder_of_its_own(study):
    varied = with_variants(
        study,
        hot={"of": "convirt", "adapt": {"temperature": 1.0}},
        small={"of": "convirt", "vision": {"image_size": 16}},
        noisy={"of": "convirt", "finetune": {"label_noise": 0.2}},
        noisy_knn={"of": "knn_convirt", "finetune": {"label_noise": 0.2}},
        noisy_origin={"of": "origin", "finetune": {"label_noise": 0.2}},
    )
    check_methods(varied.model_copy(update={"methods": [*varied.methods, "knn_convirt"]}))
    found = {name: adapted_by(varied, name) for name in varied.variants}
    assert found == {"hot": "hot", "small": "small", "noisy": "convirt", "noisy_knn": "convirt", "noisy_origin": None}


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"of": "convirt", "adapt": {"alhpa": 1}}, r"variants\.a\.adapt\.alhpa: unknown key; did you mean 'alpha'"),
        ({"of": "convirt", "adapt": {"alpha": 2}}, r"variants\.a: alpha: .*less than or equal to 1"),
        ({"of": "b"}, r"'a' is of 'b', itself a variant"),
        ({"of": "convrit"}, r"variants\.a\.of: no method 'convrit'; did you mean 'convirt'"),
        ({"of": "origin", "adapt": {"alpha": 1}}, r"variants\.a\.adapt: 'origin' adapts nothing"),
        ({"of": "dual_convirt", "vision": {"image_size": 32}}, r"vision: 'dual_convirt' has its .* from 'convirt'"),
    ],
)
def test_a_wrong_variant_is_refused_with_what_and_where(tmp_path, variant, message):
    path = write(tmp_path, variants={"a": variant, "b": {"of": "convirt"}}, methods=["origin", "a"])
    with pytest.raises(ConfigError, match=message):
        check_methods(load_config(path))
    path = write(tmp_path, variants={"convirt": {"of": "simcse"}})
    with pytest.raises(ConfigError, match="'convirt' is a method already"):
        check_methods(load_config(path))


def test_a_classifier_that_looks_needs_an_encoder_that_saw(study, monkeypatch):
    named = study.model_copy(update={"methods": ["origin", "simcse", "convirt", "dual_convirt"]})
    check_methods(named)
    monkeypatch.setitem(METHODS, "dual_convirt", dataclasses.replace(METHODS["dual_convirt"], encoder="simcse"))
    with pytest.raises(ConfigError, match="'simcse' adapts no vision tower"):
        check_methods(named)


def test_settings_that_came_later_change_no_digest(study):
    dumped = study.model_dump(mode="json")
    assert not {"ssl_fraction", "sigmoid_bias", "neighbour_share"} & dumped["adapt"].keys()
    assert not {"label_noise", "imbalance", "uda_weight"} & dumped["finetune"].keys()
    assert "random" not in dumped["vision"]
    changed = with_variants(study, noisy={"of": "origin", "finetune": {"label_noise": 0.2}})
    assert digest(changed.of("origin").finetune) == digest(study.finetune) != digest(changed.of("noisy").finetune)


def test_other_objectives_stand_beside_changed_settings(study):
    varied = with_variants(study, hot={"of": "convirt", "adapt": {"temperature": 1.0}})
    methods = ["origin", "simcse", "convirt", "convirt_sigmoid", "convirt_mlm", "convirt_shuffled", "hot"]
    assert report.changed_settings(varied, methods) == [
        ("hot", "convirt", "adapt.temperature", "1.0", "0.1"),
        ("convirt_sigmoid", "convirt", "objective", "sigmoid loss", "ConVIRT"),
        ("convirt_mlm", "convirt", "objective", "+ masked LM", "ConVIRT"),
    ]
    assert report.changed_settings(study, methods) == []


def test_a_variants_record_holds_its_settings(study, toy, tmp_path):
    varied = with_variants(study, noisy={"of": "origin", "finetune": {"label_noise": 0.4}})
    scores, predictions = classify_fractions("noisy", toy, varied, 0, tmp_path, progress=False)
    assert set(scores.method) == {"noisy"}
    runs.save_record(tmp_path, toy, "noisy", 0, varied, scores, predictions)
    text = piece(tmp_path, "records", toy.name, "noisy", 0).with_suffix(".json").read_text()
    assert '"label_noise": 0.4' in text
    assert '"test_readings": 1' in text


# --- losses and positives


def test_sigmoid_is_its_equation_and_its_gradient_reaches_both():
    a, b = vectors(5, 8, 1), vectors(5, 8, 2)
    x, y, tau, bias, groups = a.tolist(), b.tolist(), 0.3, -2.0, [0, 1, 0, 2, 3]
    for known in (None, groups):
        total = 0.0
        for i in range(5):
            for j in range(5):
                if known and i != j and known[i] == known[j]:
                    continue
                z = (1 if i == j else -1) * (cosine(x[i], y[j]) / tau + bias)
                total += math.log1p(math.exp(-z))
        found = losses.sigmoid(a, b, tau, bias, groups=None if known is None else torch.tensor(known))
        assert found.item() == pytest.approx(total / 5, rel=1e-5)
    found.backward()
    assert a.grad.abs().sum() > 0 < b.grad.abs().sum()
    same = torch.ones(4, 3)  # all cosines 1, all logits 0: each of the four columns costs log 2
    assert losses.sigmoid(same, same, 0.1, -10.0).item() == pytest.approx(4 * math.log(2), rel=1e-4)
    with pytest.raises(ValueError, match="at least 2"):
        losses.sigmoid(same[:1], same[:1], 0.1, -10.0)


def test_nearest_pictures_are_those_of_a_plain_loop(study, toy, tmp_path):
    vision, rows = make_vision(study, tmp_path), toy.part("ssl").image_row.to_numpy()
    images = ImageSource(toy, vision, make_accelerator(study.runtime))
    found = nearest_pictures(images, vision, rows)
    with torch.inference_mode():
        features = vision.eval().embed(torch.tensor(toy.images[rows])).tolist()
    for i in range(0, len(rows), 7):
        alike = [cosine(features[i], features[j]) if j != i else -2 for j in range(len(rows))]
        assert found[i] == rows[int(np.argmax(alike))] != rows[i]
    label = toy.products.set_index("image_row").label
    assert (label[found].to_numpy() == label[rows].to_numpy()).mean() > 0.8  # the toys' colours tell the label


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_neighbours_take_the_place_of_pictures(share, study, toy, tmp_path, monkeypatch):
    seen = []

    def spy(towers, batch, config):
        seen.append(batch.images.clone())
        return METHODS["convirt"].loss(towers, batch, config)

    for method in ("convirt_neighbours", "convirt"):
        monkeypatch.setitem(METHODS, "spied", dataclasses.replace(METHODS[method], loss=spy))
        varied = study.model_copy(update={"adapt": study.adapt.model_copy(update={"neighbour_share": share})})
        adapt("spied", toy, varied, 0, tmp_path, progress=False)
    half = len(seen) // 2
    same = [torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True)]
    assert half == 60 // 8
    assert all(same) if share == 0 else not any(same)


def test_a_part_of_the_ssl_data(study, toy, tmp_path):
    half = study.model_copy(update={"adapt": study.adapt.model_copy(update={"ssl_fraction": 0.5})})
    found = [adapt("simcse", toy, s, 0, tmp_path, progress=False).history for s in (study, half)]
    assert [len(history) for history in found] == [60 // 8, 30 // 8]


# --- the vision tower


def test_a_smaller_tower_sees_smaller_pictures(study, toy, tmp_path):
    small = study.model_copy(update={"vision": study.vision.model_copy(update={"image_size": 16})})
    tower, pixels = make_vision(small, tmp_path).eval(), torch.tensor(toy.images[np.arange(4)])
    shrunk = interpolate(pixels.permute(0, 3, 1, 2).float(), size=(16, 16), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = tower.backbone((shrunk - tower.mean) / tower.std)
        torch.testing.assert_close(tower.embed(pixels), expected)
    save(adapt("convirt", toy, small, 0, tmp_path, progress=False), piece(tmp_path, "encoders", "toy", "convirt", 0))
    assert load_towers(small, tmp_path, "toy", "convirt", 0)[0].vision.size == 16


def test_a_random_tower_has_the_shape_and_not_the_weights(study):
    usual = load_vision(study.vision).state_dict()
    torch.manual_seed(5)
    drawn = load_vision(study.vision.model_copy(update={"random": True})).state_dict()
    assert {name: w.shape for name, w in usual.items()} == {name: w.shape for name, w in drawn.items()}
    assert not torch.equal(usual["patch_embed.proj.weight"], drawn["patch_embed.proj.weight"])


def test_a_looking_classifier_starts_from_the_adapted_tower(study, toy, tmp_path):
    folder = piece(tmp_path, "encoders", toy.name, "convirt", 0)
    adapted, name = adapt("convirt", toy, study, 0, tmp_path, progress=False), "blocks.0.mlp.fc1.weight"
    save(adapted, folder)
    found = finetune.adapted_backbone(folder / "towers.safetensors")
    vision = load_vision(study.vision)
    before = vision.state_dict()[name].clone()
    vision.load_state_dict(found)
    assert torch.equal(found[name], adapted.rest[f"vision.backbone.{name}"])
    assert not torch.equal(found[name], before)
    save(adapt("simcse", toy, study, 0, tmp_path, progress=False), folder)
    with pytest.raises(ModelError, match="holds no vision tower"):
        finetune.adapted_backbone(folder / "towers.safetensors")
    with pytest.raises(ModelError, match="no such file"):
        finetune.adapted_backbone(tmp_path / "absent.safetensors")


# --- label noise


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
    assert flipped(clean, labels, 0.0, 0).tolist() == clean.tolist()
    with pytest.raises(ValueError, match="two classes"):
        flipped(clean, ["a"], 0.2, 0)


def test_noise_reaches_every_classifier_and_neither_dev_nor_test(study, toy, tiny_text):
    for method in ("tfidf", "knn"):
        clean, spoilt = (
            classify(method, str(tiny_text), toy, s, 1.0, 0).predictions for s in (study, tuned(study, label_noise=0.9))
        )
        assert clean.label.equals(spoilt.label)
        assert not clean.predicted.equals(spoilt.predicted)


# --- labels' names


def test_a_labels_name_is_one_more_title_of_its_own(study, toy, tiny_text, monkeypatch):
    names = finetune.named(["Gel_Nail-Polishes", "mug", "--"])
    assert names.title.tolist() == ["Gel Nail Polishes", "mug", "--"]
    assert names.label.tolist() == ["Gel_Nail-Polishes", "mug", "--"]
    seen, real = [], finetune._finetune
    monkeypatch.setattr(finetune, "_finetune", lambda *a, **k: seen.append(a[0].train) or real(*a, **k))
    read = classify("origin", str(tiny_text), toy, tuned(study, label_names=True), 0.2, 0)
    assert (read.n_train, len(seen[0])) == (6, 10)  # names are no labels
    assert set(seen[0].title[-4:]) == set(toy.labels)
    classify("recommended", str(tiny_text), toy, tuned(study, epochs=1), 0.2, 0)
    assert len(seen[-2]) == 10  # its teacher has seen them; the student's rows are made from the same


# --- imbalance


@pytest.fixture
def skewed(toy):
    """The toys, seven in ten of Train's products called mug."""
    products = toy.products.copy()
    train = products.index[products["part"] == "train"]
    products.loc[train, "label"] = ["mug"] * (len(train) - 9) + ["lamp", "rug", "vase"] * 3
    return dataclasses.replace(toy, products=products)


@pytest.mark.parametrize("name", ["logit_adjusted", "class_balanced", "two_stage"])
def test_each_remedy_is_less_sure_of_the_frequent_class(name, study, skewed, tiny_text):
    usual, balanced = (
        classify("origin", str(tiny_text), skewed, tuned(study, imbalance=n, epochs=10), 1.0, 0).predictions
        for n in ("none", name)
    )
    called = [r[r.predicted == "mug"].confidence for r in (usual, balanced)]
    # Less often, or as often and less surely.
    assert (len(called[1]), called[1].mean()) < (len(called[0]), called[0].mean())


def test_the_second_stage_trains_the_last_layer_alone(study, toy, tiny_text, tmp_path):
    for name in ("none", "two_stage"):
        classify("origin", str(tiny_text), toy, tuned(study, imbalance=name), 1.0, 0, keep=tmp_path / name)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("none", "two_stage"))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_the_last_layer_begins_alike_in_every_process(tiny_text):
    from transformers import AutoModelForSequenceClassification

    drawn = []
    for state in (1, 2):  # processes draw from different states
        model = AutoModelForSequenceClassification.from_pretrained(tiny_text, num_labels=4)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        finetune.only_last_layer(model, torch.optim.Adam(model.parameters()), seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(model.classifier.weight.detach().clone())
    assert torch.equal(*drawn)


def test_adjusted_logits_are_shifted_by_the_prior_in_training_alone(study, skewed, tiny_text, monkeypatch):
    seen = []

    def spy(found, target, **options):
        seen.append(found.detach().clone())
        return torch.nn.functional.cross_entropy(found, target, **options)

    monkeypatch.setattr(finetune, "cross_entropy", spy)
    for name in ("none", "logit_adjusted"):
        classify("origin", str(tiny_text), skewed, tuned(study, imbalance=name), 1.0, 0)
    shift = seen[len(seen) // 2] - seen[0]  # the first steps of both, before any weight differs
    counts = skewed.part("train").label.value_counts().reindex(skewed.labels)
    expected = torch.tensor(np.log(counts.to_numpy() + 1), dtype=torch.float32).expand_as(shift)
    torch.testing.assert_close(shift, expected, atol=1e-4, rtol=1e-4)


# --- consistency


class Stand(torch.nn.Module):
    """Logits from the word after the first: a table with a row for each."""

    def __init__(self, scores):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(scores))

    def forward(self, input_ids, attention_mask):
        return self.table[input_ids[:, 1]]


def test_consistency_is_its_equation():
    model = Stand([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.1]])
    tokenizer = SimpleNamespace(all_special_ids=[0, 1])
    tokens = {"input_ids": torch.tensor([[1, 2, 0], [1, 3, 0], [1, 4, 0]]), "attention_mask": torch.ones(3, 3).long()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = uda(model, tokens, tokenizer, share=1.0)
    torch.set_rng_state(state)
    drawn = torch.tensor([2, 3, 4])[torch.randint(3, (3, 3))][:, 1].tolist()
    table, total = model.table.tolist(), 0.0
    for word, noisy in zip([2, 3, 4], drawn, strict=True):
        p, q = np.exp(np.array(table[word]) / 0.4), np.exp(table[noisy])
        p, q = p / p.sum(), q / q.sum()  # of two classes one has at least 0.5
        total += (p * np.log(p / q)).sum()
    assert total > 0
    assert found.item() == pytest.approx(total / 3, rel=1e-4)
    found.backward()
    assert model.table.grad.abs().sum() > 0
    nothing = {"input_ids": torch.tensor([[1, 0]]), "attention_mask": torch.ones(1, 2).long()}
    assert uda(model, nothing, tokenizer).item() == 0


def test_consistency_of_pictures_is_refused(study, toy, tiny_text):
    with pytest.raises(ValueError, match="joint fusion reads pictures too"):
        classify("dual_joint", str(tiny_text), toy, tuned(study, uda_weight=1.0), 1.0, 0)


def test_an_unsure_title_teaches_nothing():
    model, tokenizer = Stand([[0.0] * 3, [0.0] * 3, [0.5, 0, 0], [0, 0.5, 0]]), SimpleNamespace(all_special_ids=[0, 1])
    tokens = {"input_ids": torch.tensor([[1, 2], [1, 3]]), "attention_mask": torch.ones(2, 2).long()}
    assert uda(model, tokens, tokenizer, share=1.0).item() == 0


def test_consistency_reads_titles_of_the_ssl_part_and_no_label(study, toy, tiny_text):
    products = toy.products.copy()
    products.loc[products["part"] == "ssl", "label"] = "mug"
    relabelled, noisy = dataclasses.replace(toy, products=products), tuned(study, uda_weight=1.0, lr=3e-3, epochs=10)
    one, same = (classify("origin", str(tiny_text), c, noisy, 1.0, 0).predictions for c in (toy, relabelled))
    pd.testing.assert_frame_equal(one, same)
    without = classify("origin", str(tiny_text), toy, tuned(noisy, uda_weight=0.0), 1.0, 0).predictions
    assert not one.confidence.equals(without.confidence)


# --- teaching


@pytest.mark.parametrize("method", ["distilled", "self_trained"])
def test_a_student_learns_what_its_teacher_says(method, study, toy, tiny_text, tmp_path, monkeypatch):
    """A teacher that calls everything a vase, and labels that are outnumbered."""
    vase, real = toy.labels.index("vase"), finetune._finetune

    def says(*_, **__):
        return lambda products: np.eye(len(toy.labels))[[vase] * len(products)]

    def student(*arguments, soft=None, **options):
        return says() if soft is None else real(*arguments, soft=soft, **options)

    monkeypatch.setattr(finetune, "_late", says)
    monkeypatch.setattr(finetune, "_finetune", student)
    read = classify(method, str(tiny_text), toy, tuned(study, epochs=20), 0.1, 0, keep=tmp_path / "kept")
    assert (read.predictions.predicted == "vase").mean() > 0.8
    from transformers import pipeline

    assert pipeline("text-classification", model=str(tmp_path / "kept"))("alma 7")[0]["label"] == "vase"
    assert (read.n_train, read.test_readings) == (3, 1)


def test_teaching_reads_no_label_of_the_ssl_part(study, toy, tiny_text):
    products = toy.products.copy()
    products.loc[products["part"] == "ssl", "label"] = "mug"
    relabelled = dataclasses.replace(toy, products=products)
    one, same = (classify("distilled", str(tiny_text), c, study, 1.0, 0).predictions for c in (toy, relabelled))
    pd.testing.assert_frame_equal(one, same)


def test_pictures_teach_titles_what_few_labels_cannot(study, toy, tiny_text):
    """The toys' pictures tell the label and half of the titles do: on those the student is as sure as its teacher."""
    longer, right = tuned(study, epochs=50, lr=3e-3), {}
    for method in ("origin", "distilled"):
        read = classify(method, str(tiny_text), toy, longer, 0.3, 0).predictions.merge(toy.products[["id", "title"]])
        telling = read[[label in title for label, title in zip(read.label, read.title, strict=True)]]
        right[method] = (telling.label == telling.predicted).mean()
    assert right["distilled"] > right["origin"]


def test_a_remedy_by_sampling_has_no_use_for_probabilities(study, toy, tiny_text):
    with pytest.raises(ValueError, match="of no one class"):
        classify("distilled", str(tiny_text), toy, tuned(study, imbalance="class_balanced", epochs=1), 1.0, 0)


# --- Test is read once


def test_every_method_reads_test_once(study, toy, tmp_path):
    folder = piece(tmp_path, "encoders", toy.name, "convirt", 0)
    save(adapt("convirt", toy, study, 0, tmp_path, progress=False), folder)
    for method, entry in METHODS.items():
        towers = folder / "towers.safetensors" if entry.looks and entry.encoder else None
        read = classify(method, str(folder), toy, study, 1.0, 0, towers=towers)
        assert read.test_readings == 1, method
    before = toy.handed["test"]
    toy.part("test")
    assert toy.handed["test"] == before + 1  # the count is no constant
