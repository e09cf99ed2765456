"""The lessons: every exercise has a check that says "Not yet" to its stub and to a typical mistake, and "Right" to the
solution. Here cells are executed by themselves; the notebooks as a whole by `make lessons`."""

import ast
import base64
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import lesson_tools
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.animation import FuncAnimation
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from torch.nn.functional import cross_entropy, normalize

from icssl_lib import losses
from icssl_lib.catalogue import open_catalogue
from icssl_lib.encoders import load_text, load_vision
from icssl_lib.files import locked

FOLDER = Path(lesson_tools.__file__).parent
LESSONS = sorted(FOLDER.glob("0*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/0*.ipynb"))
EXERCISES = [f"{lesson}.{i}" for lesson in range(1, 8) for i in (1, 2, 3)]


# --- a typical mistake for each exercise, and words of its hint ---


def predicted_classes_only(label, predicted):
    macro = f1_score(label, predicted, labels=list(set(predicted)), average="macro")
    return accuracy_score(label, predicted), macro


def by_dot_product(query, known, labels, k):
    votes = labels[np.argsort(-query @ known.T, axis=1)[:, :k]]
    return [max(set(row), key=list(row).count) for row in votes]


def any_word_of_the_class(train, items):
    words = {c: set(" ".join(rows["title"]).lower().split()) for c, rows in train.groupby("label")}
    return [not words.get(item.label, set()) & set(item.title.lower().split()) for item in items.itertuples()]


def zeroed_diagonal(query, key, temperature):
    x = normalize(query, dim=1) @ normalize(key, dim=1).T / temperature
    return ((x * (1 - torch.eye(len(x)))).logsumexp(1) - x.diag()).mean()


def one_pass(encoder, titles, temperature):
    t = encoder.train()(titles)
    return losses.simcse(t, t, temperature)


def ordered_pairs(groups, batch_size):
    n, same = len(groups), sum(m * (m - 1) for m in np.bincount(groups))
    return same * batch_size * (batch_size - 1) / (n * (n - 1))


def loss_of_each_chunk(tower, x, loss_of, chunk_size):
    for chunk in x.split(chunk_size):
        if len(chunk) > 1:
            loss = loss_of(tower(chunk))
            loss.backward()
    return loss


def recall_of_longest(text, image, k):
    similarity = text @ image.T
    return ((similarity > similarity.diag()[:, None]).sum(1) < k).float().mean()


def zero_over_zero(text, picture):
    with np.errstate(invalid="ignore"):
        return np.hstack([x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, picture)])


MISTAKES: dict[str, tuple[str, Callable]] = {
    "1.1": ("a class that is never predicted has F1 = 0 and counts; you left it out", predicted_classes_only),
    "1.2": ("the longest vectors win: divide each by its length first, then s is the cosine", by_dot_product),
    "1.3": ("'red' stands in titles of two classes, so it points to neither", any_word_of_the_class),
    "2.1": ("s is the cosine: divide each row", lambda q, k, tau: cross_entropy(q @ k.T / tau, torch.arange(len(q)))),
    "2.2": ("a logit of 0 still counts, as exp(0) = 1; what is to be left out must be -inf", zeroed_diagonal),
    "2.3": ("a factor 1 / N is missing", lambda s, tau: ((s / tau).softmax(1) - torch.eye(len(s))) / tau),
    "3.1": ("bring the rows to unit length first", lambda first, second: (first - second).square().sum(dim=1).mean()),
    "3.2": ("the encoder has to see the titles twice", one_pass),
    "3.3": ("pushes the titles apart", losses.alignment),
    "4.1": ("you gave it to image to text", lambda text, image, tau, a: losses.convirt(text, image, tau, 1 - a)),
    "4.2": ("kept its own picture", lambda rows, seed: np.random.default_rng(seed).permutation(rows)),
    "4.3": ("the longest pictures win", recall_of_longest),
    "5.1": ("you count (a, b) and (b, a)", ordered_pairs),
    "5.2": ("this is the loss without a mask", lambda query, key, tau, groups: losses.info_nce(query, key, tau)),
    "5.3": ("take that of all rows once", loss_of_each_chunk),
    "6.1": ("this is accuracy", lambda label, predicted, labels: (label == predicted).mean()),
    "6.2": ("each row must sum to 1 again", lambda probability, train, shop: probability * shop / train),
    "6.3": (
        "the sign is that of prediction time",
        lambda logits, target, prior, strength: cross_entropy(logits - strength * prior.log(), target),
    ),
    "7.1": ("cores are whole; round up", lambda rate, milliseconds, busy: rate * milliseconds / 1000 / busy),
    "7.2": ("0 / 0 is no number", zero_over_zero),
    "7.3": ("it is no threshold on the confidence", lambda sure, model, person, p: np.where(sure < p, person, model)),
}


@cache
def answers(solved: bool) -> dict[str, Any]:
    """Exercise to what its notebook gives to the check, by the notebook's imports and the cell above the check."""
    found = {}
    for path in SOLUTIONS if solved else LESSONS:
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        nodes = [node for cell in cells for node in ast.parse(cell).body]
        imports = ast.Module([node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)], [])
        space: dict[str, Any] = {}
        exec(compile(imports, path.name, "exec"), space)
        for above, cell in pairwise(cells):
            for exercise, name in re.findall(r'\bcheck\("(.*?)", (\w+)\)', cell):
                exec(above, space)
                found[exercise] = space[name]
    return found


def test_there_are_seven_lessons_each_with_three_exercises_and_a_solution():
    assert [path.name[:2] for path in LESSONS] == [f"0{i}" for i in range(1, 8)]
    assert [path.name for path in SOLUTIONS] == [path.name for path in LESSONS]
    assert list(answers(solved=False)) == list(answers(solved=True)) == list(MISTAKES) == EXERCISES


@pytest.mark.parametrize("exercise", EXERCISES)
def test_check_tells_a_stub_a_mistake_and_the_solution_apart(exercise, capsys):
    hint, mistake = MISTAKES[exercise]
    for answer, right, said in (
        (None, False, "Not yet: nothing to check"),
        (answers(solved=False)[exercise], False, "Not yet: the function returns None"),
        (mistake, False, f"Not yet: .*{re.escape(hint)}"),
        (answers(solved=True)[exercise], True, "Right: .*\\.$"),
    ):
        assert lesson_tools.check(exercise, answer) is right
        assert re.match(said, capsys.readouterr().out, re.DOTALL)


def breaks(*_, **__):
    raise ZeroDivisionError("by hand")


@pytest.mark.parametrize("answer", [breaks, "a string", lambda *_, **__: "text", lambda *_, **__: object()])
def test_check_survives_any_answer(answer, capsys):
    for exercise in EXERCISES:
        assert lesson_tools.check(exercise, answer) is False
        assert capsys.readouterr().out.startswith("Not yet: ")


def test_notebooks_have_no_outputs():
    for path in [*LESSONS, *SOLUTIONS]:
        code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert [cell for cell in code if cell.outputs or cell.execution_count] == []


# --- the workshop ---

SMALL = """
study: small
datasets: {beauty: {source: synthetic, genre: beauty, products: 200, classes: 6}}
text: {model: pretrained, max_tokens: 16}
vision: {model: pretrained, image_size: 32}
pretrain: {titles: 60, vocab_size: 300, hidden_size: 32, layers: 1, heads: 2, text_epochs: 1,
           pictures: 40, vision_size: 32, vision_layers: 1, vision_epochs: 1}
"""


def test_workshop_survives_a_kill_and_two_notebooks_make_it_once(root, tmp_path):
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    config.write_text(SMALL)
    code = "import sys, pathlib, lesson_tools; lesson_tools.workshop(*map(pathlib.Path, sys.argv[1:]))"
    path = os.pathsep.join(map(str, (root, FOLDER)))
    killed = subprocess.Popen([sys.executable, "-c", code, out, config], env=os.environ | {"PYTHONPATH": path})
    while not (out / "catalogues" / "beauty" / "catalogue.json").is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (out / "workshop").exists()

    def written(_: int) -> dict[Path, int]:
        """When each file was, as a notebook finds it that has its workshop."""
        lesson_tools.workshop(out, config)
        return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}

    with ThreadPoolExecutor(2) as pool:  # the lock tells threads apart as it does processes
        first, second = pool.map(written, range(2))
    assert first == second
    with locked(out / ".lock"):  # what is there needs no lock, nor a folder that can be written to
        study, _ = lesson_tools.workshop(out, config)
    assert len(open_catalogue(out / "catalogues" / "beauty").products) == 200
    assert load_text(study.text.model)[0].config.hidden_size == study.pretrain.hidden_size
    assert load_vision(study.vision).num_features == study.pretrain.vision_size

    config.write_text(SMALL.replace("products: 200", "products: 180"))
    lesson_tools.workshop(out, config)
    assert len(open_catalogue(out / "catalogues" / "beauty").products) == 180


# --- pictures that move ---


def figure(x: float) -> plt.Figure:
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.bar([0], [x])
    ax.set_ylim(0, 1)
    return fig


def test_slider_holds_every_position_and_shows_the_first():
    open_before = plt.get_fignums()
    moving = lesson_tools.slider(figure, value=0.3, low=0.01, high=1, name="<tau>")
    frames = re.findall(r'<img alt="(.*?)" style="display: (\w+);.*?base64,(.*?)">', moving.page)
    values = [float(alt) for alt, *_ in frames]
    assert len(values) == 26
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.01, 1)
    assert [alt for alt, display, _ in frames if display == "block"] == ["0.3"]
    assert "<output>0.3</output>" in moving.page
    assert "&lt;tau&gt;" in moving.page
    assert base64.b64decode(frames[values.index(0.3)][2]) == moving.still
    assert Image.open(io.BytesIO(moving.still)).size == (180, 90)
    assert plt.get_fignums() == open_before


def test_animation_is_a_page_of_its_own():
    open_before = plt.get_fignums()
    fig, ax = plt.subplots(figsize=(2, 2))
    (line,) = ax.plot([0, 1], [0, 1])
    moving = lesson_tools.animate(FuncAnimation(fig, lambda i: line.set_data([0, 1], [0, i / 4]), frames=4))
    assert len(re.findall(r"frames\[\d+\] = \"data:image/png;base64", moving.page)) == 4
    assert "://" not in moving.page, "it asks the network for something"
    assert [mark for mark in "«‹▶❚›»" if mark not in moving.page] == []
    assert Image.open(io.BytesIO(moving.still)).size == (180, 180)
    assert plt.get_fignums() == open_before
