"""The lessons: every exercise has a check that says "Not yet" to its stub and to typical mistakes, and "Right" to the
solution. Here cells are executed by themselves; the notebooks as a whole by `make lessons`."""

import ast
import base64
import io
import json
import re
import textwrap
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.animation import FuncAnimation
from PIL import Image

from icssl_lib import lessons
from icssl_lib.catalogue import open_catalogue
from icssl_lib.config import load_config
from icssl_lib.encoders import load_text, load_vision
from icssl_lib.runs import ROOT, locked

FOLDER = ROOT / "notebooks" / "lessons"
LESSONS = sorted(path.name for path in FOLDER.glob("0*.ipynb"))
EXERCISES = sorted(lessons.CHECKS)

# A typical mistake for each exercise: words of its hint, and code that makes `answer`.
WRONG = {
    "1.1": (
        "a class that is never predicted has F1 = 0 and counts; you left it out",
        """
        from sklearn.metrics import accuracy_score, f1_score
        def answer(label, predicted):
            macro = f1_score(label, predicted, labels=list(set(predicted)), average="macro")
            return accuracy_score(label, predicted), macro
        """,
    ),
    "1.2": (
        "the longest vectors win: divide each by its length first, then s is the cosine",
        """
        import numpy as np
        def answer(query, known, labels, k):
            votes = labels[np.argsort(-query @ known.T, axis=1)[:, :k]]
            return [max(set(row), key=list(row).count) for row in votes]
        """,
    ),
    "1.3": (
        "'red' stands in titles of two classes, so it points to neither",
        """
        def answer(train, items):
            words = {c: set(" ".join(rows["title"]).lower().split()) for c, rows in train.groupby("label")}
            return [not words.get(c, set()) & set(t.lower().split()) for t, c in zip(items["title"], items["label"])]
        """,
    ),
    "2.1": (
        "s is the cosine: divide each row by its length",
        """
        import torch
        def answer(query, key, temperature):
            return torch.nn.functional.cross_entropy(query @ key.T / temperature, torch.arange(len(query)))
        """,
    ),
    "2.2": (
        "a logit of 0 still counts, as exp(0) = 1; what is to be left out must be -inf",
        """
        import torch
        from torch.nn.functional import normalize
        def answer(query, key, temperature):
            x = normalize(query, dim=1) @ normalize(key, dim=1).T / temperature
            return ((x * (1 - torch.eye(len(x)))).logsumexp(1) - x.diag()).mean()
        """,
    ),
    "2.3": (
        "the loss is the mean over the rows: a factor 1 / N is missing",
        """
        import torch
        def answer(similarity, temperature):
            return ((similarity / temperature).softmax(1) - torch.eye(len(similarity))) / temperature
        """,
    ),
    "3.1": (
        "bring the rows to unit length first",
        """
        def answer(first, second):
            return (first - second).square().sum(dim=1).mean()
        """,
    ),
    "3.2": (
        "the encoder has to see the titles twice",
        """
        from icssl_lib import losses
        def answer(encoder, titles, temperature):
            t = encoder.train()(titles)
            return losses.simcse(t, t, temperature)
        """,
    ),
    "3.3": (
        "pushes the titles apart",
        """
        from icssl_lib import losses
        def answer(first, second):
            return losses.alignment(first, second)
        """,
    ),
    "4.1": (
        "you gave it to image to text",
        """
        from icssl_lib.losses import info_nce
        def answer(text, image, temperature, alpha):
            return (1 - alpha) * info_nce(text, image, temperature) + alpha * info_nce(image, text, temperature)
        """,
    ),
    "4.2": (
        "kept its own picture",
        """
        import numpy as np
        def answer(rows, seed):
            return np.random.default_rng(seed).permutation(rows)
        """,
    ),
    "4.3": (
        "the longest pictures win",
        """
        import torch
        def answer(text, image, k):
            similarity = text @ image.T
            return ((similarity > similarity.diag()[:, None]).sum(1) < k).float().mean()
        """,
    ),
    "5.1": (
        "you count (a, b) and (b, a)",
        """
        import numpy as np
        def answer(groups, batch_size):
            n, same = len(groups), sum(m * (m - 1) for m in np.bincount(groups))
            return same * batch_size * (batch_size - 1) / (n * (n - 1))
        """,
    ),
    "5.2": (
        "this is the loss without a mask",
        """
        from icssl_lib import losses
        def answer(query, key, temperature, groups):
            return losses.info_nce(query, key, temperature)
        """,
    ),
    "5.3": (
        "take that of all rows once",
        """
        def answer(tower, x, loss_of, chunk_size):
            for chunk in x.split(chunk_size):
                if len(chunk) > 1:
                    loss = loss_of(tower(chunk))
                    loss.backward()
            return loss
        """,
    ),
    "6.1": (
        "this is accuracy",
        """
        def answer(label, predicted, labels):
            return (label == predicted).mean()
        """,
    ),
    "6.2": (
        "each row must sum to 1 again",
        """
        def answer(probability, train, shop):
            return probability * shop / train
        """,
    ),
    "6.3": (
        "the sign is that of prediction time",
        """
        from torch.nn.functional import cross_entropy
        def answer(logits, target, prior, strength):
            return cross_entropy(logits - strength * prior.log(), target)
        """,
    ),
    "7.1": (
        "cores are whole; round up",
        """
        def answer(rate, milliseconds, busy):
            return rate * milliseconds / 1000 / busy
        """,
    ),
    "7.2": (
        "0 / 0 is no number",
        """
        import numpy as np
        def answer(text, picture):
            return np.hstack([x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, picture)])
        """,
    ),
    "7.3": (
        "it is no threshold on the confidence",
        """
        import numpy as np
        def answer(confidence, by_title, by_both, share):
            return np.where(confidence < share, by_both, by_title)
        """,
    ),
}


@cache
def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def checked(path: Path) -> dict[str, tuple[str, str]]:
    """Exercise to the source of the cell that defines its answer, and of the expression given to ``check``."""
    found: dict[str, tuple[str, str]] = {}
    defined: dict[str, str] = {}  # name to the last cell that defines it
    for source in code_cells(path):
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check":
                exercise, answer = ast.literal_eval(node.args[0]), node.args[1]
                assert exercise not in found, f"{path.name} checks {exercise} twice"
                assert isinstance(answer, ast.Name), f"{path.name}, {exercise}: give `check` the name of the answer"
                found[exercise] = defined.get(answer.id, source), answer.id
        for node in tree.body:
            names = [node.name] if isinstance(node, ast.FunctionDef) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            defined |= dict.fromkeys(names, source)
    return found


@cache
def everything(folder: Path) -> dict[str, tuple[Path, str, str]]:
    return {
        exercise: (path, *cell) for path in sorted(folder.glob("0*.ipynb")) for exercise, cell in checked(path).items()
    }


def answer_of(folder: Path, exercise: str) -> Any:
    """What a notebook gives to the check of an exercise, by its imports and the cell that defines it alone."""
    path, source, name = everything(folder)[exercise]
    space: dict[str, Any] = {}
    trees = [node for cell in code_cells(path) for node in ast.parse(cell).body]
    imports = [node for node in trees if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), path.name, "exec"), space)
    exec(source, space)
    return space[name]


def test_there_are_seven_lessons_each_with_three_exercises_and_a_solution():
    assert [name[:2] for name in LESSONS] == [f"0{i}" for i in range(1, 8)]
    assert sorted(path.name for path in (FOLDER / "solutions").glob("*.ipynb")) == LESSONS
    expected = [f"{lesson}.{i}" for lesson in range(1, 8) for i in (1, 2, 3)]
    assert expected == EXERCISES
    assert sorted(everything(FOLDER)) == expected
    assert sorted(everything(FOLDER / "solutions")) == expected
    assert sorted(WRONG) == expected
    for exercise, (path, *_) in everything(FOLDER).items():
        assert path.name.startswith(f"0{exercise[0]}")


@pytest.mark.parametrize("exercise", EXERCISES)
def test_check_tells_a_stub_a_mistake_and_the_solution_apart(exercise, capsys):
    def verdict(answer: Any) -> tuple[bool, str]:
        right = lessons.check(exercise, answer)
        return right, capsys.readouterr().out.strip()

    assert verdict(None) == (False, "Not yet: nothing to check; put your answer in place of None")
    right, said = verdict(answer_of(FOLDER, exercise))
    assert not right
    assert said.startswith("Not yet: ")
    assert "stopped with" not in said, "a stub is no crash"
    hint, source = WRONG[exercise]
    space: dict[str, Any] = {}
    exec(textwrap.dedent(source), space)
    right, said = verdict(space["answer"])
    assert not right
    assert said.startswith("Not yet: ")
    assert hint in said
    right, said = verdict(answer_of(FOLDER / "solutions", exercise))
    assert right, said
    assert re.fullmatch(r"Right: .*\.", said, re.DOTALL), said


def test_check_survives_any_answer(capsys):
    def breaks(*_, **__):
        raise ZeroDivisionError("by hand")

    for exercise in EXERCISES:
        for answer in (breaks, "a string", 7, lambda *_, **__: "text", lambda *_, **__: object()):
            assert lessons.check(exercise, answer) is False
            assert capsys.readouterr().out.startswith("Not yet: ")
    assert lessons.check("9.9", 1) is False
    assert "no exercise '9.9'" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*LESSONS, *(f"solutions/{name}" for name in LESSONS)])
def test_notebook_has_no_output_and_short_cells(name):
    cells = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), source
            assert len(source.splitlines()) <= 15, source
            assert not re.search(r"^\s*class\s", source, re.MULTILINE), source
    if "/" not in name:
        text = "".join("".join(cell["source"]) for cell in cells)
        assert text.count("**Notice**") >= 3
        assert "**Next**" in "".join(cells[-1]["source"]) or name.startswith("07")


# --- the workshop ---


def test_workshop_makes_a_catalogue_and_encoders_and_reads_them_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "load_config", lambda _: load_config(ROOT / "config" / "smoke.yaml"))
    study, out = lessons.workshop(tmp_path)
    assert study.study == "smoke"
    assert len(open_catalogue(out / "catalogues" / "beauty").products) == 240
    assert load_text(str(out / "pretrained" / "text"))[0].config.hidden_size == study.pretrain.hidden_size
    vision = study.vision.model_copy(update={"model": f"local-dir:{out / 'pretrained' / 'vision'}"})
    assert load_vision(vision).num_features == study.pretrain.vision_size
    monkeypatch.setattr(lessons, "_make", lambda *_: pytest.fail("made twice"))
    with locked(tmp_path):  # what is there needs no lock, nor a folder that can be written to
        assert lessons.workshop(tmp_path) == (study, out)


def test_two_notebooks_at_once_make_the_workshop_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(lessons, "_make", lambda *_: (time.sleep(0.3), made.append(threading.get_ident())))
    threads = [threading.Thread(target=lessons.workshop, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(made) == 1


def test_an_interrupted_or_outdated_workshop_is_made_anew(tmp_path, monkeypatch):
    made = []

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lessons, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lessons.workshop(tmp_path)
    monkeypatch.setattr(lessons, "_make", lambda study, _: made.append(study.study))
    lessons.workshop(tmp_path)
    lessons.workshop(tmp_path)
    assert made == ["lessons"]
    monkeypatch.setattr(lessons, "load_config", lambda _: load_config(ROOT / "config" / "smoke.yaml"))
    lessons.workshop(tmp_path)
    assert made == ["lessons", "smoke"]


# --- pictures that move ---


def figure(x: float) -> plt.Figure:
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.bar([0], [x])
    ax.set_ylim(0, 1)
    return fig


def test_slider_holds_every_position_and_shows_the_first():
    open_before = plt.get_fignums()
    moving = lessons.slider(figure, value=0.3, low=0.01, high=1, log=True, name="<tau>", steps=5)
    frames = re.findall(r'<img alt="(.*?)" style="display: (\w+);.*?base64,(.*?)">', moving.page)
    assert [alt for alt, *_ in frames] == ["0.01", "0.0316", "0.1", "0.3", "0.316", "1"]
    assert [alt for alt, display, _ in frames if display == "block"] == ["0.3"]
    assert 'max="5" value="3"' in moving.page
    assert "<output>0.3</output>" in moving.page
    assert "&lt;tau&gt;" in moving.page
    pictures = [base64.b64decode(content) for *_, content in frames]
    assert len(set(pictures)) == 6
    assert pictures[3] == moving.still
    assert Image.open(io.BytesIO(moving.still)).size == (180, 90)
    assert plt.get_fignums() == open_before
    bundle = moving._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == moving.still
    assert bundle["text/html"] == moving.page


def test_slider_refuses_a_value_outside_its_range():
    with pytest.raises(ValueError, match="low <= value <= high"):
        lessons.slider(figure, value=2, low=0, high=1)
    with pytest.raises(ValueError, match="above 0 with log"):
        lessons.slider(figure, value=0.5, low=0, high=1, log=True)


def test_animation_is_a_page_of_its_own_and_has_a_limit():
    open_before = plt.get_fignums()
    fig, ax = plt.subplots(figsize=(2, 2))
    (line,) = ax.plot([0, 1], [0, 1])
    animation = FuncAnimation(fig, lambda i: line.set_data([0, 1], [0, i / 4]), frames=4)
    moving = lessons.animate(animation)
    assert len(re.findall(r"frames\[\d+\] = \"data:image/png;base64", moving.page)) == 4
    assert "://" not in moving.page, "it asks the network for something"
    assert [mark for mark in "«‹▶❚›»" if mark not in moving.page] == []
    assert Image.open(io.BytesIO(moving.still)).size == (180, 180)
    assert plt.get_fignums() == open_before
    with pytest.raises(ValueError, match="fewer or smaller frames"):
        lessons.animate(animation, most=1000)
