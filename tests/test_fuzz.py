"""The fuzzer at a small size, and that it stops for what it is to stop for."""

import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

sys.addaudithook(fuzz.watch)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_whatever_comes_is_read_or_refused(kind):
    found = fuzz.fuzz(kind, range(300))
    assert 0 < found["accepted"] < found["accepted"] + found["dropped"] + found["refused"] == 300


@pytest.mark.parametrize(("kind", "message"), [
    (lambda _, folder: {}["not ours"], "7: KeyError"),
    (lambda _, folder: Path(os.devnull).write_text("x"), "'open', '/dev/null'"),
    (lambda _, folder: subprocess.run(["true"]), "subprocess.Popen"),
])  # fmt: skip
def test_it_stops_for_a_foreign_error_a_file_elsewhere_and_a_process(kind, message):
    with pytest.raises(RuntimeError, match=message):
        fuzz.fuzz(kind, [7])
    fuzz.SEEN.clear()
