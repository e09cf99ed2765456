"""The lessons: every exercise has a check that says "Not yet" to its stub and to a typical mistake, and "Right" to the
solution. Here cells are executed by themselves; the notebooks as a whole by `make lessons`."""

import ast
import base64
import html
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import lesson_tools
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from icssl_lib import losses
from icssl_lib.catalogue import open_catalogue
from icssl_lib.encoders import load_text, load_vision
from icssl_lib.files import locked

FOLDER = Path(lesson_tools.__file__).parent
LESSONS = sorted(FOLDER.glob("0*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/0*.ipynb"))
EXERCISES = [f"{lesson}.{i}" for lesson in range(1, 9) for i in (1, 2, 3)]


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


def looped(loss_of, mode=nn.Module.train, held=lambda model: model, clear="after", step="each"):
    """A training loop. loss_of: (model, batch, *options) to the loss; mode: what is done to the model first; held: the
    part of it that the optimizer holds; clear: when gradients are, in relation to the step."""

    def loop(model, batches, *options_and_lr):
        *options, lr = options_and_lr
        optimizer = torch.optim.Adam(held(model).parameters(), lr=lr)
        mode(model)
        found = []
        for batch in batches:
            loss = loss_of(model, batch, *options)
            loss.backward()
            if clear == "between":
                optimizer.zero_grad()
            if step == "each":
                optimizer.step()
            if clear == "after":
                optimizer.zero_grad()
            found.append(loss.item())
        if step == "last":
            optimizer.step()
        return found

    return loop


def by_hand(query, key, negatives, tau, unit=True):
    """The printed loss, written out."""
    q, k, n = (normalize(x, dim=1) if unit else x for x in (query, key, negatives))
    e = (q @ n.T / tau).exp() * (1 - torch.eye(len(q)))
    return -((q * k).sum(1) / tau - e.sum(1).log()).mean()


def simcse_of(tower, batch, tau):
    return losses.simcse(tower(**batch), tower(**batch), tau)


def simcse_by_hand(tower, batch, tau, unit=True):
    first, second = tower(**batch), tower(**batch)
    return by_hand(first, second, first, tau, unit)


def simcse_standard(tower, batch, tau):
    first, second = (normalize(tower(**batch), dim=1) for _ in range(2))
    return cross_entropy(first @ second.T / tau, torch.arange(len(first)))


def simcse_of_frozen_encoder(tower, batch, tau):
    with torch.no_grad():
        first, second = tower.embed(**batch), tower.embed(**batch)
    return losses.simcse(tower.projection(first), tower.projection(second), tau)


def simcse_in_one_call(tower, batch, tau):
    both = tower(**{name: torch.cat([x, x]) for name, x in batch.items()})
    return losses.simcse(*both.chunk(2), tau)


def simcse_in_adjacent_rows(tower, batch, tau):
    both = tower(**{name: x.repeat_interleave(2, 0) for name, x in batch.items()})
    return losses.simcse(both[::2], both[1::2], tau)


def simcse_backwards(tower, batch, tau):
    second = tower(**batch)
    return losses.simcse(tower(**batch), second, tau)


def same_pass(tower, batch, tau):
    t = tower(**batch)
    return losses.simcse(t, t, tau)


def first_constant(tower, batch, tau):
    return losses.simcse(tower(**batch), tower(**batch).detach(), tau)


def all_constant(tower, batch, tau):
    with torch.no_grad():
        return simcse_of(tower, batch, tau)


def convirt_of(towers, batch, pictures, tau, alpha, which=lambda rows: rows, frozen="", loss=losses.convirt):
    tokens, rows = batch
    text, image = towers.text(**tokens), towers.vision(pictures[which(rows)])
    return loss(text.detach() if frozen == "text" else text, image.detach() if frozen == "image" else image, tau, alpha)


def convirt_by_hand(text, image, tau, alpha, unit=True, key=lambda x: x):
    v, t = key(image), key(text)  # each as the key, among which a query of the other side chooses
    return alpha * by_hand(text, v, v, tau, unit) + (1 - alpha) * by_hand(image, t, t, tau, unit)


convirt_standard = partial(losses.convirt, positive_in_denominator=True)


def picture_before_title(towers, batch, pictures, tau, alpha):
    image = towers.vision(pictures[batch[1]])
    return losses.convirt(towers.text(**batch[0]), image, tau, alpha)


def title_to_picture(text, image, tau, alpha):
    return losses.info_nce(text, image, tau)


def picture_to_title(text, image, tau, alpha):
    return losses.info_nce(image, text, tau)


def entropy_of(model, batch, read=lambda scores: scores):
    return cross_entropy(read(model(**batch[0]).logits), batch[1])


def entropy_of_frozen_encoder(model, batch):
    model.base_model.requires_grad_(False)
    return entropy_of(model, batch)


def text_only(towers):
    return towers.text.train()


def masking(goes, empty="-", seed=0, each="word"):
    """Exercise 8.2. goes: (word, class words, number, share) to whether the word goes; each: what draws a number."""

    def mask(titles, class_words, share):
        rng, shown, of_word = np.random.default_rng(seed), [], {}
        for title in titles:
            x = rng.random()
            kept = []
            for word in title.split():
                x = x if each == "title" else rng.random()
                number = of_word.setdefault(word, x) if each == "kind" else x
                kept += [word] * (not goes(word, class_words, number, share))
            shown.append(" ".join(kept) or empty)
        return shown

    return mask


def named_and_below(word, class_words, x, share):
    return word.lower().removesuffix("s") in class_words and x < share


def factors_by(axis, monotone=np.maximum.accumulate, read=lambda there, fractions: there / fractions):
    """Exercise 8.3. axis: a function of the fraction and its inverse, in which curves are straight."""
    go, back = axis
    return lambda f, origin, method: read(back(np.interp(method, monotone(origin), go(f))), f)


LOG = np.log, np.exp


MISTAKES: dict[str, tuple[str, Callable]] = {
    "1.1": ("a class that is never predicted has F1 = 0 and counts; you left it out", predicted_classes_only),
    "1.2": ("the longest vectors win: divide each by its length first, then s is the cosine", by_dot_product),
    "1.3": ("'red' stands in titles of two classes, so it points to neither", any_word_of_the_class),
    "2.1": ("s is the cosine: divide each row", lambda q, k, tau: cross_entropy(q @ k.T / tau, torch.arange(len(q)))),
    "2.2": ("a logit of 0 still counts, as exp(0) = 1; what is to be left out must be -inf", zeroed_diagonal),
    "2.3": ("a factor 1 / N is missing", lambda s, tau: ((s / tau).softmax(1) - torch.eye(len(s))) / tau),
    "3.1": ("bring the rows to unit length first", lambda first, second: (first - second).square().sum(dim=1).mean()),
    "3.2": ("the tower has to see the titles twice", looped(same_pass)),
    "3.3": ("pushes the titles apart", losses.alignment),
    "4.1": ("you gave it to image to text", lambda text, image, tau, a: losses.convirt(text, image, tau, 1 - a)),
    "4.2": ("picture i is not that of title i", looped(partial(convirt_of, which=lambda rows: rows.sort()[0]))),
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
    "7.2": ("softmax came twice", looped(partial(entropy_of, read=lambda scores: scores.softmax(1)))),
    "7.3": ("it is no threshold on the confidence", lambda sure, model, person, p: np.where(sure < p, person, model)),
    "8.1": ("the sign, not its size", lambda: (0.05, 0, 0.1)),
    "8.2": ("draw a number for each word, not for each title", masking(named_and_below, each="title")),
    "8.3": ("linear in the fraction", factors_by([np.copy] * 2)),
}

# Further mistakes of those who write a training loop, and loops that are as right as the solution.
WRONG_LOOPS = [
    ("3.2", "without zero_grad() each step adds", looped(simcse_of, clear="never")),
    ("3.2", "dropout was off", looped(simcse_of, mode=nn.Module.eval)),
    ("3.2", "not brought to unit length", looped(partial(simcse_by_hand, unit=False))),
    ("3.2", "the positive stands among the negatives", looped(simcse_standard)),
    ("3.2", "no gradient reaches the model", looped(all_constant)),
    ("3.2", "no gradient reaches the encoder", looped(simcse_of_frozen_encoder)),
    ("3.2", "the encoder, but it stays as it was", looped(simcse_of, held=lambda tower: tower.projection)),
    ("3.2", "one of the two passes is detached", looped(first_constant)),
    ("3.2", "step() was never called", looped(simcse_of, step="never")),
    ("3.2", "step() was called 1 times for 10 batches", looped(simcse_of, step="last")),
    ("3.2", "the gradients were gone when the step came", looped(simcse_of, clear="between")),
    ("3.2", "10 batches give 10 losses; yours are 3", lambda tower, batches, *_: [1.0, 2.0, 3.0]),
    ("3.2", "append loss.item()", lambda tower, batches, tau, lr: [simcse_of(tower, b, tau) for b in batches]),
    ("4.2", "without zero_grad() each step adds", looped(convirt_of, clear="never")),
    ("4.2", "the vision tower, but it stays as it was", looped(convirt_of, held=lambda towers: towers.text)),
    ("4.2", "the text tower, but it stays as it was", looped(convirt_of, held=lambda towers: towers.vision)),
    ("4.2", "no gradient reaches the vision tower", looped(partial(convirt_of, frozen="image"))),
    ("4.2", "no gradient reaches the text tower", looped(partial(convirt_of, frozen="text"))),
    ("4.2", "both towers come in evaluation mode", looped(convirt_of, mode=nn.Module.eval)),
    ("4.2", "the vision tower stayed in evaluation mode", looped(convirt_of, mode=text_only)),
    ("4.2", "text to image alone", looped(partial(convirt_of, loss=title_to_picture))),
    ("4.2", "image to text alone", looped(partial(convirt_of, loss=picture_to_title))),
    ("4.2", "picture i is not that of title i", looped(partial(convirt_of, which=lambda rows: range(len(rows))))),
    ("4.2", "not brought to unit length", looped(partial(convirt_of, loss=partial(convirt_by_hand, unit=False)))),
    ("4.2", "the positive stands among", looped(partial(convirt_of, loss=convirt_standard))),
    ("4.2", "the keys are detached", looped(partial(convirt_of, loss=partial(convirt_by_hand, key=torch.detach)))),
    ("4.2", "step() was never called", looped(convirt_of, step="never")),
    ("7.2", "without zero_grad() each step adds", looped(entropy_of, clear="never")),
    ("7.2", "dropout was off", looped(entropy_of, mode=nn.Module.eval)),
    ("7.2", "the encoder, but it stays as it was", looped(entropy_of, held=lambda model: model.classifier)),
    ("7.2", "no gradient reaches the encoder", looped(entropy_of_frozen_encoder)),
    ("7.2", "step() was never called", looped(entropy_of, step="never")),
]
RIGHT_LOOPS = [
    *(("3.2", looped(loss)) for loss in (simcse_of, simcse_by_hand, simcse_in_one_call)),
    *(("3.2", looped(loss)) for loss in (simcse_in_adjacent_rows, simcse_backwards)),
    *(("4.2", looped(loss)) for loss in (partial(convirt_of, loss=convirt_by_hand), picture_before_title)),
    ("7.2", looped(lambda model, batch: model(**batch[0], labels=batch[1]).loss)),
]


WRONG_ANSWERS = [  # of lesson 8
    ("8.1", "for pairs, names and picture; these are 2", lambda: (1, 0)),
    ("8.1", "for pairs, names and picture; this is 'pairs", lambda: "pairs gain"),
    ("8.2", "case matters not", masking(lambda word, known, x, share: word.removesuffix("s") in map(str.title, known))),
    ("8.2", "a plural's s", masking(lambda word, known, x, share: word.lower() in known and x < share)),
    ("8.2", "compare whole words", masking(lambda word, known, *_: any(w in word.lower() for w in known))),
    ("8.2", 'loses all of its words is "-"', masking(named_and_below, empty="")),
    ("8.2", "at share 0 every title stays", masking(lambda word, known, *_: named_and_below(word, known, 0, 1))),
    ("8.2", "is back at 0.5", masking(named_and_below, seed=None)),
    ("8.2", "in all titles or in none", masking(named_and_below, each="kind")),
    ("8.2", "'lipstick' is a class word", masking(lambda word, known, x, m: named_and_below(word, known, m, x))),
    ("8.3", "how many times your own fraction", factors_by(LOG, read=lambda there, f: there)),
    ("8.3", "upside down", factors_by(LOG, read=lambda there, f: f / there)),
    ("8.3", "make it monotone first", factors_by(LOG, monotone=np.copy)),
    ("8.3", "this is the gain in accuracy", lambda f, origin, method: method - origin),
    ("8.3", "4 fractions need 4 factors", lambda f, origin, method: 1.6),
]


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


def test_there_are_eight_lessons_each_with_three_exercises_and_a_solution():
    assert [path.name[:2] for path in LESSONS] == [f"0{i}" for i in range(1, 9)]
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


@pytest.mark.parametrize(("exercise", "hint", "answer"), WRONG_LOOPS + WRONG_ANSWERS)
def test_the_usual_mistakes_are_named(exercise, hint, answer, capsys):
    assert lesson_tools.check(exercise, answer) is False
    assert hint in capsys.readouterr().out


@pytest.mark.parametrize(("exercise", "loop"), RIGHT_LOOPS)
def test_a_training_loop_may_be_written_otherwise(exercise, loop, capsys):
    before = torch.random.get_rng_state()
    assert lesson_tools.check(exercise, loop) is True, capsys.readouterr().out
    assert torch.equal(torch.random.get_rng_state(), before)


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


def test_a_chart_with_a_slider_is_a_page_of_its_own_and_a_picture():
    table = pd.DataFrame({"x": [0, 1], "y": [1, 2]})
    cut = alt.param("cut", value=1, bind=alt.binding_range(min=0, max=1, step=1))
    chart = alt.Chart(table, width=100).mark_bar().encode(x="x:O", y="y:Q").transform_filter("datum.x == cut")
    shown = lesson_tools.Moving(chart.add_params(cut), height=200)._repr_mimebundle_()
    page = html.unescape(shown["text/html"])
    assert re.findall(r'<(?:script|link)[^>]*(?:src|href)="?https?:', page) == [], "it asks the network for something"
    assert Image.open(io.BytesIO(base64.b64decode(shown["image/png"]))).size[0] > 100


def test_a_training_step_can_be_read_in_six_cells(root):
    notebooks = [*LESSONS, *SOLUTIONS, *(root / "notebooks").glob("*.ipynb")]
    cells = [cell for path in notebooks for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert sum("optimizer.step()" in cell.source for cell in cells) >= 6
