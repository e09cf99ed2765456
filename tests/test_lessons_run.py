"""The command behind `make lessons`, on notebooks of one cell or two."""

import os
import time
from pathlib import Path

import execute
import nbformat
import pytest

CHECK = 'def check(exercise, answer):\n    print("Right: so." if answer else "Not yet: a hint.")'


def write(path: Path, *cells: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)), metadata=kernel), path)
    os.utime(path, (1, 1))  # older than any output
    return path


def test_problems_are_named_and_what_is_sound_is_not_executed_again(tmp_path):
    course, out = tmp_path / "lessons", tmp_path / "runs"
    write(course / "01_sound.ipynb", CHECK, 'check("1.1", None)')
    write(course / "solutions" / "01_sound.ipynb", CHECK, 'check("1.1", 1)', 'check("1.2", 1)')
    broken = write(course / "02_broken.ipynb", "1 / 0")
    write(course / "03_lenient.ipynb", CHECK, 'check("3.1", None)', 'check("3.2", True)')
    first = execute.run(course, out, [], limit=60).set_index("notebook")
    assert first["problem"].to_dict() == {
        "01_sound": "",
        "02_broken": "ZeroDivisionError: division by zero",
        "03_lenient": "exercise 3.2: the check does not say “Not yet”",
        "solutions/01_sound": "",
    }
    assert first["seconds"].between(0.3, 60).all()
    executed = out / "executed"
    assert "Not yet: a hint." in (executed / "01_sound.ipynb").read_text()
    assert not (executed / "02_broken.ipynb").exists()
    assert "ZeroDivisionError" in (executed / "02_broken.failed.ipynb").read_text()

    names = ["01_sound", "solutions/01_sound"]
    before = [(executed / f"{name}.ipynb").stat().st_mtime_ns for name in names]
    write(broken, "1")
    os.utime(course / "solutions" / "01_sound.ipynb")  # edited since
    again = execute.run(course, out, ["01", "02"], limit=60).set_index("notebook")
    assert again["problem"].tolist() == ["", "", first["problem"]["03_lenient"], ""]
    after = [(executed / f"{name}.ipynb").stat().st_mtime_ns for name in names]
    assert after[0] == before[0]
    assert after[1] > before[1]


def test_a_lesson_that_is_too_slow_is_stopped(tmp_path):
    started = time.monotonic()
    write(tmp_path / "01_slow.ipynb", "1", "import time\ntime.sleep(600)")
    times = execute.run(tmp_path, tmp_path / "runs", [], limit=4)
    assert times["problem"].tolist() == ["took longer than 4 s"]
    assert time.monotonic() - started < 60


def test_a_name_that_no_lesson_bears_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no lesson 09"):
        execute.run(tmp_path, tmp_path / "runs", ["09"], limit=4)


def test_notebooks_that_run_at_a_time_have_each_their_own_folder(tmp_path):
    here = "from pathlib import Path\nimport time\ntime.sleep(1)\nassert Path().absolute().name == %r"
    write(tmp_path / "lessons" / "01_one.ipynb", here % "lessons")
    write(tmp_path / "lessons" / "solutions" / "01_one.ipynb", here % "solutions")
    assert execute.run(tmp_path / "lessons", tmp_path / "runs", [], limit=60, jobs=2)["problem"].tolist() == ["", ""]
