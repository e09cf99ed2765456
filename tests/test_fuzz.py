"""The fuzzer at a small size, and that it stops for what it is to stop for."""

import subprocess
import sys

import fuzz
import pytest

sys.addaudithook(fuzz.watch)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_whatever_comes_is_read_or_refused(kind):
    found = fuzz.fuzz(kind, range(300))
    assert found["accepted"] + found["dropped"] + found["refused"] == found["tried"] == 300
    assert 0 < found["accepted"] < 300


def test_it_stops_for_a_foreign_error_a_file_elsewhere_and_a_process(tmp_path):
    def breaks(rng, folder):
        raise KeyError("not ours")

    for kind, message in (
        (breaks, "breaks 7: KeyError"),
        (lambda rng, folder: (tmp_path / "elsewhere").write_text("x"), "elsewhere"),
        (lambda rng, folder: subprocess.run(["true"]).returncode == 0, "subprocess.Popen"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fuzz.fuzz(kind, [7])
        fuzz.SEEN.clear()
