"""`make bench` on models that do in milliseconds: that it compares, and what it says when a peer is missing."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import bench
import bench_work
import pandas as pd
import pytest

(PLAIN,) = bench.PLAIN


@pytest.fixture
def compare(monkeypatch):
    """`bench.compare` of work that is done in no time: ours takes half a second, on the plain path a quarter, theirs
    two; a third side fails. ``calls``: all that were made."""

    def work(name: str, seconds: float, **arguments) -> list[float]:
        compare.calls.append((name, arguments.get("fast", True)))
        return [seconds / 2 if arguments.get("fast") is False else seconds]

    def broken(**_) -> list[float]:
        raise ImportError("no setfit")

    def compare(rounds: int, ours: str = "ours", **peers: str) -> list[dict]:
        one = bench.Work("a step", 32, ours, {}, {"n": 3}, peers, bench.PLAIN)
        with ThreadPoolExecutor(1) as pool, bench.tqdm(disable=True) as bar:
            return bench.compare(one, rounds, pool, pool, bar)

    compare.calls = []
    for name, call in {
        "ours": partial(work, "ours", 0.5),
        "theirs": partial(work, "theirs", 2.0),
        "broken": broken,
    }.items():
        monkeypatch.setattr(bench_work, name, call, raising=False)
    return compare


def test_a_ratio_is_of_medians_and_sides_take_turns_to_be_first(compare):
    table = pd.DataFrame(compare(3, them="theirs")).set_index("peer")
    assert table.loc["them"].tolist() == ["a step", 64, 16, 4, 4, 4]
    assert table.loc[PLAIN, "ratio"] == 0.5  # the plain path may win, and is shown then
    assert compare.calls[0::3] == [("ours", True), ("ours", False), ("theirs", True)]
    assert len(compare.calls) == 9


def test_a_peer_that_fails_is_named_and_left_out(compare, capsys):
    assert [row["peer"] for row in compare(2, a="broken", b="theirs")] == [PLAIN, "b"]
    assert "a is left out: ImportError: no setfit" in capsys.readouterr().out
    with pytest.raises(ImportError):
        compare(1, ours="broken", b="theirs")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_work_names_functions_that_there_are(device):
    for bf16 in (False, True):
        sides = [side for one in bench.works(device, bf16) for side in one.sides(None, None).items()]
        assert all(callable(getattr(bench_work, call)) for _, (_, call, _) in sides)
        assert any("bf16" in name for name, _ in sides) == bf16


def test_ours_runs_in_a_process_that_logs(tmp_path):
    environment = {"ICSSL_BENCH": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    step = {"shape": "tiny", "batch": 8, "n_steps": 3}
    with bench.worker(environment, tmp_path / "log") as process:
        for call, extra in (
            (bench_work.ours_adapt, {"method": "simcse"}),
            (bench_work.ours_adapt, {"method": "convirt", "size": 32, "fast": False}),
            (bench_work.ours_finetune, {}),
        ):
            seconds = process.submit(call, **step, **extra).result()
            assert len(seconds) == 3
            assert all(0 < second < 30 for second in seconds)
        for call in (bench_work.ours_predict, bench_work.ours_embed, bench_work.pipeline):
            assert process.submit(call, shape="tiny", n=20).result()[0] > 0
        with pytest.raises(KeyError, match="no such shape"):
            process.submit(bench_work.ours_predict, shape="no such shape", n=3).result()
    assert (tmp_path / "log").is_file()
