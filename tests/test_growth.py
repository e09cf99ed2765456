"""Cost against size: that each work runs and is written, and that a slope too steep is found and named."""

import subprocess
import sys

import growth
import pandas as pd
import pytest

TABLE = ["work", "against", "x", "seconds", "memory_mb"]


def test_quick_writes_every_work(tmp_path):
    # In a process of its own, for it forks: here another test may have made a GPU's state, which survives no fork.
    subprocess.run([sys.executable, growth.__file__, "--quick", "--out", str(tmp_path)], check=True)
    table, fitted = pd.read_csv(tmp_path / "growth.csv"), pd.read_csv(tmp_path / "growth_slopes.csv")
    assert list(table) == TABLE
    assert list(fitted) == ["work", "against", "slope", "allowed"]
    assert set(zip(fitted["work"], fitted["against"], strict=True)) == set(growth.WORKS)
    assert set(fitted["against"]) == set(growth.SIZES)
    for against, part in table.groupby("against"):
        assert set(part["x"]) == set(growth.SIZES[against][:2])
    assert len(table) == 2 * len(growth.WORKS)
    assert (table["seconds"] > 0).all()
    assert table["memory_mb"].between(-1, 500).all()
    # 1000 titles and their ids, read and kept, are some megabytes; a peak that is not seen would be 0.
    assert table.query("work == 'Ingest of a table'")["memory_mb"].min() > 1
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def costs(exponent: float, fixed: float = 0.0) -> pd.DataFrame:
    """What a work of that exponent would cost, beside a linear one."""
    sizes = growth.SIZES["products"]
    rows = [("line", "products", x, 1e-5 * x, 0.0) for x in sizes]
    rows += [("bend", "products", x, fixed + 1e-9 * x**exponent, 0.0) for x in sizes]
    return pd.DataFrame(rows, columns=TABLE)


@pytest.mark.parametrize("exponent", [0.5, 1, 2])
def test_slope_is_the_exponent(exponent):
    fitted = growth.slopes(costs(exponent).sample(frac=1, random_state=0)).set_index("work")["slope"]
    assert fitted["line"] == pytest.approx(1)
    assert fitted["bend"] == pytest.approx(exponent)


def test_slope_is_of_the_larger_half():
    small = costs(2, fixed=0.1)
    assert growth.slopes(small)["slope"].iloc[1] > 1.9  # over all sizes it would be 1.2
    two = small[small["x"] <= growth.SIZES["products"][1]]
    assert len(growth.slopes(two)) == 2


def test_gate_fails_on_a_quadratic_work_and_names_it():
    growth.judge(growth.slopes(costs(1)))
    with pytest.raises(SystemExit, match=r"bend +products +2\.0") as error:
        growth.judge(growth.slopes(costs(2)))
    assert "line" not in str(error.value)
