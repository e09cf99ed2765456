"""`make bench` on models that do in milliseconds: that it compares, and what it says when a peer is missing."""

import json

import bench
import pandas as pd
import pytest


class Fake:
    """Stands for a worker: seconds by call; an exception is raised."""

    def __init__(self, seconds: dict) -> None:
        self.seconds, self.calls = seconds, []

    def do(self, call: str, **arguments) -> list[float]:
        self.calls.append((call, arguments))
        answer = self.seconds[call]
        if isinstance(answer, Exception):
            raise answer
        return [answer / 2] if arguments.get("fast") is False else [answer]


(PLAIN,) = bench.PLAIN


@pytest.fixture
def bar():
    with bench.tqdm(disable=True) as silent:
        yield silent


def work(**peers: str) -> bench.Work:
    sides = {name: (call, {"n": 3}) for name, call in peers.items()}
    return bench.Work("a step", 32, "ours", {"n": 3}, sides, ways=bench.PLAIN)


def test_a_ratio_is_of_medians_and_above_one_where_ours_is_faster(bar):
    ours, peers = Fake({"ours": 0.5}), Fake({"theirs": 2.0})
    rows, seconds = bench.compare(work(theirs="theirs"), 3, ours, peers, Fake({}), bar)
    table = pd.DataFrame(rows).set_index("peer")
    assert seconds == 0.5
    assert table.loc["theirs"].tolist() == ["a step", 64, 16, 4, 4, 4]
    assert table.loc[PLAIN, "ratio"] == 0.5  # the plain path may win, and is shown then
    assert len(peers.calls) == 3


def test_sides_take_turns_to_be_first(bar):
    class Shared(Fake):
        order: list[str] = []  # noqa: RUF012

        def do(self, call: str, **arguments) -> list[float]:
            self.order.append(call + str(arguments.get("fast", "")))
            return [1.0]

    shared = Shared({})
    bench.compare(work(theirs="theirs"), 3, shared, shared, Fake({}), bar)
    assert shared.order[0::3] == ["ours", "oursFalse", "theirs"]
    assert len(shared.order) == 9


def test_a_peer_that_fails_is_named_and_left_out(bar, capsys):
    peers = Fake({"theirs": RuntimeError("theirs: No module named 'setfit'"), "others": 1.0})
    rows, _ = bench.compare(work(theirs="theirs", others="others"), 2, Fake({"ours": 1.0}), peers, Fake({}), bar)
    assert [row["peer"] for row in rows] == [PLAIN, "others"]
    assert "theirs is left out: theirs: No module named 'setfit'" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="broken"):
        bench.compare(work(others="others"), 1, Fake({"ours": RuntimeError("broken")}), peers, Fake({}), bar)


def test_small_pages_are_those_of_a_process_of_their_own(bar):
    one = bench.Work("a step", 32, "ours", {}, {}, ways=bench.PLAIN | bench.SMALL_PAGES)
    small = Fake({"ours": 3.0})
    rows, _ = bench.compare(one, 2, Fake({"ours": 1.0}), Fake({}), small, bar)
    assert {row["peer"]: row["ratio"] for row in rows} == {PLAIN: 0.5, "ours, pages of 4 KB": 3}
    assert len(small.calls) == 2


def test_each_work_names_functions_that_there_are():
    import bench_work

    for bf16 in (False, True):
        found = bench.works(bf16, quick=False)
        assert len(found) >= 9
        assert all("ours, not recorded" in one.ways for one in bench.gpu_works(bf16) if one.training)
        for one in found + bench.gpu_works(bf16):
            assert callable(getattr(bench_work, one.call))
            assert one.peers or one.ways  # a frozen tower is beside our own training of both
            assert all(callable(getattr(bench_work, call)) for call, _ in one.peers.values())
        assert any("bf16" in name for one in found for name in one.peers) == bf16


def test_a_worker_answers_and_says_what_went_wrong(tmp_path, monkeypatch):
    import os

    environment = os.environ | {"ICSSL_BENCH": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    worker = bench.Worker(environment, tmp_path / "log")
    step = {"shape": "tiny", "batch": 8, "n_steps": 3}
    try:
        for extra in ({}, {"fast": False}):
            seconds = worker.do("ours_adapt", method="simcse", **step, **extra)
            assert len(seconds) == 3
            assert all(0 < second < 30 for second in seconds)
        assert len(worker.do("ours_adapt", method="simcse", whole_table=True, **step)) == 3
        for frozen in (False, True):
            assert len(worker.do("ours_adapt", method="convirt", size=32, frozen=frozen, **step)) == 3
        assert len(worker.do("ours_finetune", **step)) == 3
        assert len(worker.do("original_simcse", **step)) == 3
        assert worker.do("ours_predict", shape="tiny", n=20)[0] > 0
        assert worker.do("ours_predict", shape="tiny", n=20, narrow=False)[0] > 0
        assert worker.do("ours_embed", shape="tiny", n=20)[0] > 0
        assert worker.do("pipeline", shape="tiny", n=20)[0] > 0
        flops = worker.do("flops", of="ours_finetune", **step)[0]
        assert 1e5 < flops < 1e9
        with pytest.raises(RuntimeError, match="KeyError: 'no such shape'"):
            worker.do("ours_predict", shape="no such shape", n=3)
        assert worker.do("ours_predict", shape="tiny", n=20)[0] > 0  # it goes on
    finally:
        worker.close()


def test_published_figures_have_a_row_for_each_work(root):
    """That the tables of CPUs, together, are of the works that there are now."""
    folders = [root / "figures" / name for name in ("bench", "bench-half", "bench-amx")]
    table = pd.concat([pd.read_csv(folder / "bench.csv") for folder in folders])
    assert list(table.columns) == bench.COLUMNS
    about = pd.concat([pd.read_csv(folder / "machine.csv") for folder in folders])
    bf16 = about["machine"].str.contains("bf16").any()
    expected = {(one.name, peer) for one in bench.works(bf16, quick=False) for peer in {**one.peers, **one.ways}}
    assert expected <= set(zip(table["work"], table["peer"], strict=True))
    assert table["ratio"].between(0.8 * table["low"], 1.25 * table["high"]).all()  # medians of steps and of rounds
    assert (table["ratio"] - table["ours_per_s"] / table["peer_per_s"]).abs().max() < 0.01
    assert json.loads((root / "figures" / "bench" / "quick_before.json").read_text())["seconds"] > 0
