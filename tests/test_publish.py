"""No number in a document that no file holds: the marked blocks are what the committed files say."""

import json

import pandas as pd
import pytest

from icssl_lib.metrics import format_table2
from icssl_lib.publish import BLOCK, documents, fill, publish
from icssl_lib.runs import RESULTS


def test_the_documents_say_what_the_files_hold(root):
    blocks = 0
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        assert fill(text, root / "figures") == text, f"{path.name}: run `python -m icssl_lib.runs publish CONFIG`"
        blocks += len(BLOCK.findall(text))
    assert blocks >= 4


@pytest.fixture
def finished(tmp_path):
    out = tmp_path / "runs"
    (out / "figures").mkdir(parents=True)
    rows = [("a", m, 0.1, 0, 9, x, x, x, x, "0" * 16, 1.0) for m, x in (("origin", 0.25), ("convirt", 0.5))]
    pd.DataFrame(rows, columns=RESULTS).to_csv(out / "results.csv", index=False)
    wall = {"seconds": 90, "jobs": 3, "cores": 2, "peak_memory_gb": 1.5}
    wall["machine"] = {"cpu": "a CPU", "device": "cpu", "torch": "2"}
    (out / "wall.json").write_text(json.dumps(wall))
    difference = {"dataset": "a", "method": "convirt", "fraction": 0.1, "metric": "accuracy"}
    pd.DataFrame([difference | {"difference": 0.25, "low": 0.1, "high": 0.4}]).to_csv(out / "figures/differences.csv")
    return out


def test_a_csv_and_a_text_are_shown_as_they_are(tmp_path):
    folder = tmp_path / "scale"
    folder.mkdir()
    (folder / "plan.csv").write_text("study,real_minutes,chunk\nquick,17.90,\nhm,89.1,8\n")
    (folder / "slurm.txt").write_text("one\ntwo\n\n")
    block = "<!-- icssl: scale {} -->\n{}\n<!-- /icssl -->\n"
    text = fill(block.format("plan", "") + block.format("slurm", ""), tmp_path)
    table = "| study | quick | hm |\n|---|---|---|\n| real minutes | 17.90 | 89.1 |\n| chunk |  | 8 |"
    assert text == block.format("plan", table) + block.format("slurm", "```text\none\ntwo\n```")


def test_publish_fills_blocks_and_nothing_else(tmp_path, finished):
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    before = "# Title\n<!-- icssl: s {} -->\nold 0.999\n<!-- /icssl -->\nend\n"
    readme.write_text("".join(before.format(what) for what in ("table2", "cost", "differences")))
    assert publish("s", finished, tmp_path) == [readme]
    text = readme.read_text()
    assert "0.999" not in text
    assert format_table2(pd.read_csv(finished / "results.csv")) in text
    assert "1.5 minutes on 2 cores of a CPU (cpu), at most 1.5 GB" in text
    assert "| a | ConVIRT | +0.250 [+0.100, +0.400] |" in text
    assert text.count("# Title") == text.count("end\n") == 3
    assert publish("s", finished, tmp_path) == []  # the same files, the same text
    results = tmp_path / "figures/s/results.csv"
    results.write_text(results.read_text().replace("0.5", "0.6"))
    assert fill(text, tmp_path / "figures") != text  # a file that changed is noticed
