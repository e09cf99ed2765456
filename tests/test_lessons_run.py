"""The command behind `make lessons`, on notebooks of one cell or two."""

import os
import time
from pathlib import Path

import lessons
import nbformat
import pytest

CHECK = 'def check(exercise, answer):\n    print("Right: so." if answer else "Not yet: a hint.")'
SLEEP = "import time\ntime.sleep(600)"


def write(path: Path, *cells: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)), metadata=kernel), path)
    os.utime(path, (1, 1))  # older than any output
    return path


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A stub and its solution, an error, one that says "Right" to a stub; the library has not changed since."""
    monkeypatch.setattr(lessons, "ROOT", tmp_path)
    folder = tmp_path / "lessons"
    write(folder / "01_sound.ipynb", CHECK, 'check("1.1", None)')
    write(folder / "solutions" / "01_sound.ipynb", CHECK, 'check("1.1", 1)', 'check("1.2", 1)')
    write(folder / "02_broken.ipynb", "1 / 0")
    write(folder / "03_lenient.ipynb", CHECK, 'check("3.1", None)', 'check("3.2", True)')
    return folder


def test_problems_are_named_and_what_is_sound_is_not_executed_again(course, tmp_path):
    out = tmp_path / "runs"
    times = lessons.run(course, out, [], limit=60).set_index("notebook")
    assert times["problem"].to_dict() == {
        "01_sound": "",
        "02_broken": "ZeroDivisionError: division by zero",
        "03_lenient": "exercise 3.2: the check does not say “Not yet”",
        "solutions/01_sound": "",
    }
    assert times["seconds"].between(0.3, 30).all()
    executed = out / "executed" / "01_sound.ipynb"
    assert "Not yet: a hint." in executed.read_text()
    assert not (out / "executed" / "02_broken.ipynb").exists()
    assert "ZeroDivisionError" in (out / "executed" / "02_broken.failed.ipynb").read_text()

    before = {
        name: (out / "executed" / f"{name}.ipynb").stat().st_mtime_ns for name in ("01_sound", "solutions/01_sound")
    }
    write(course / "02_broken.ipynb", "1")
    os.utime(course / "solutions" / "01_sound.ipynb")  # edited since
    again = lessons.run(course, out, ["01", "02"], limit=60).set_index("notebook")
    assert again["problem"].tolist() == ["", "", times["problem"]["03_lenient"], ""]
    after = {name: (out / "executed" / f"{name}.ipynb").stat().st_mtime_ns for name in before}
    assert after["01_sound"] == before["01_sound"]
    assert after["solutions/01_sound"] > before["solutions/01_sound"]
    assert again["seconds"]["01_sound"] == times["seconds"]["01_sound"]


def test_a_lesson_that_is_too_slow_is_stopped(tmp_path):
    folder, started = tmp_path / "lessons", time.monotonic()
    write(folder / "01_slow.ipynb", "1", SLEEP)
    times = lessons.run(folder, tmp_path / "runs", [], limit=4)
    assert times["problem"].tolist() == ["took longer than 4 s"]
    assert time.monotonic() - started < 30
    assert not (tmp_path / "runs" / "executed" / "01_slow.ipynb").exists()


def test_a_name_that_no_lesson_bears_is_refused(tmp_path):
    write(tmp_path / "lessons" / "01_a.ipynb", "1")
    with pytest.raises(SystemExit, match="no lesson 09"):
        lessons.run(tmp_path / "lessons", tmp_path / "runs", ["09"], limit=4)
