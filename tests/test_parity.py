"""The comparison of two paths' accuracies: what it pairs, and when it fails."""

import sys

import numpy as np
import pandas as pd
import parity
import pytest


def results(shift: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    keys = [(d, m, f, s) for d in "ab" for m in ("origin", "convirt") for f in (0.1, 1.0) for s in range(3)]
    table = pd.DataFrame(keys, columns=parity.KEYS).assign(split_hash="x")
    return table.assign(accuracy=0.5 + shift + rng.normal(0, 0.01, len(keys)))


def run(plain: pd.DataFrame, fast: pd.DataFrame, folder, monkeypatch) -> pd.DataFrame:
    plain.to_csv(folder / "plain.csv", index=False)
    fast.to_csv(folder / "fast.csv", index=False)
    arguments = ["parity", str(folder / "plain.csv"), str(folder / "fast.csv"), "--out", str(folder / "out.csv")]
    monkeypatch.setattr(sys, "argv", arguments)
    parity.main()
    return pd.read_csv(folder / "out.csv").set_index("method")


def test_equal_paths_pass_and_runs_are_paired_by_their_keys(tmp_path, monkeypatch):
    plain, fast = results(0, 1), results(0, 2).sample(frac=1, random_state=0)
    found = run(plain, fast, tmp_path, monkeypatch)
    expected = fast.sort_values(parity.KEYS).accuracy.mean() - plain.accuracy.mean()
    assert found.loc["all", "difference"] == pytest.approx(expected, abs=1e-4)
    assert found["runs"].to_dict() == {"origin": 12, "convirt": 12, "all": 24}
    assert (found.low <= found.difference).all()
    assert (found.difference <= found.high).all()


@pytest.mark.parametrize("shift", [-0.03, 0.03])
def test_a_shift_in_either_direction_fails(tmp_path, monkeypatch, shift):
    with pytest.raises(SystemExit, match="does not hold 0"):
        run(results(0, 1), results(shift, 2), tmp_path, monkeypatch)


def test_other_splits_and_strangers_are_refused():
    with pytest.raises(SystemExit, match="different splits"):
        parity.paired(results(0, 1), results(0, 2).assign(split_hash="y"))
    with pytest.raises(SystemExit, match="no run in common"):
        parity.paired(results(0, 1), results(0, 2).assign(dataset="c"))


@pytest.mark.parametrize(("study", "pairs"), [("parity", 3 * 6 * 10), ("parity_quick", 3 * 6 * 3 * 4)])
def test_the_paths_do_not_differ(root, study, pairs):
    """From the same encoders, 3 data sets, all fractions: origin on 10 seeds (tests/parity_plain.yaml says how), and
    all methods on 3, adaptation included (tests/parity_quick.yaml)."""
    plain, fast = (pd.read_csv(root / f"figures/bench/{study}_{path}_results.csv") for path in ("plain", "fast"))
    runs = parity.paired(plain, fast)
    assert len(runs) == pairs
    assert runs.difference.abs().max() > 0  # it is another run
    _, low, high = parity.interval(runs)
    assert low <= 0 <= high
