"""Cost against size: that each work runs and is written, and that a slope too steep is found."""

import subprocess
import sys

import growth
import pandas as pd
import pytest


def test_quick_writes_every_work(tmp_path):
    # In a process of its own, for it forks: here another test may have made a GPU's state, which survives no fork.
    subprocess.run([sys.executable, growth.__file__, "--quick", "--out", str(tmp_path)], check=True)
    table, fitted = pd.read_csv(tmp_path / "growth.csv"), pd.read_csv(tmp_path / "growth_slopes.csv")
    assert set(zip(fitted["work"], fitted["against"], strict=True)) == set(growth.WORKS)
    assert len(table) == 2 * len(growth.WORKS)
    assert (table["seconds"] > 0).all()


@pytest.mark.parametrize(("exponent", "fixed", "steep"), [(0.5, 0, False), (1, 0, False), (2, 0, True), (2, 0.1, True)])
def test_slope_is_the_exponent_of_the_larger_half(exponent, fixed, steep):
    x = pd.Series(growth.SIZES["products"], dtype=float)
    table = pd.DataFrame({"work": "it", "against": "products", "x": x, "seconds": fixed + 1e-9 * x**exponent})
    fitted = growth.slopes(table.sample(frac=1, random_state=0)).iloc[0]
    assert fitted["slope"] == pytest.approx(exponent, abs=0.1)  # over all sizes the last would be 1.2
    assert (fitted["slope"] > fitted["allowed"]) == steep
