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


BEYOND = {
    "compare": (
        "dataset,method,against,metric,fraction,difference,low,high,p,p_holm\n"
        "beauty,convirt,origin,accuracy,0.05,0.9,0.9,0.9,0.001,0.001\n"
        "all,convirt,origin,accuracy,0.05,0.1,0.05,0.15,0.001,0.002\n"
        "all,convirt,origin,accuracy,1,0.01,-0.01,0.03,0.3,0.3\n"
        "all,tfidf,convirt,accuracy,1,-0.2,-0.3,-0.1,0.001,0.002\n"
        "all,convirt,origin,tail_macro_f1,1,,,,,\n",
        "| method | less | 5% | 100% |\n|---|---|---|---|\n"
        "| ConVIRT | BERT (origin) | +0.100 [+0.050, +0.150]* | +0.010 [-0.010, +0.030] |\n\n",
    ),
    "share_kept": (
        "dataset,method,dual,fraction,gain,dual_gain,dual_low,dual_high,share,low,high\n"
        "all,convirt,dual_late,0.05,0.1,0.2,0.1,0.3,0.5,0.4,0.6\n"
        "all,convirt,dual_late,1,0.1,0.0,-0.1,0.1,,,\n",
        "| title alone | of the gain of | 5% | 100% |\n|---|---|---|---|\n"
        "| ConVIRT | Title + picture (late) | 0.50 [0.40, 0.60] | – |\n",
    ),
    "factor": (
        "dataset,method,fraction,seeds,accuracy,accuracy_sd,factor,low,high\n"
        "beauty,origin,0.05,3,0.4,0.1,,,\n"
        "beauty,convirt,0.05,3,0.5,0.1,2.04,1.5,3\n",
        "| | | 5% |\n|---|---|---|\n| beauty | ConVIRT | 2.0 [1.5, 3.0] |",
    ),
    "ablations": (
        # Of four p the smallest, .01, is .04 by Holm over all cells; over what the fractions have made of it, .08.
        "setting,value,reference,variant,of,dataset,fraction,metric,difference,low,high,p,p_holm\n"
        "adapt.chunk_size,8,None,chunked,convirt,all,0.05,accuracy,0,0,0,1,1\n"
        "adapt.chunk_size,8,None,chunked,convirt,all,1,accuracy,0,0,0,1,1\n"
        "adapt.alpha,0.50,0.75,even,convirt,all,0.05,accuracy,0.1,0.05,0.15,0.01,0.02\n"
        "adapt.alpha,0.50,0.75,even,convirt,all,1,accuracy,0.01,0.001,0.02,0.02,0.02\n"
        "adapt.alpha,0.50,0.75,even,convirt,all,0.05,tail_macro_f1,,,,,\n",
        "| method | setting | value (study's) | 5% | 100% |\n|---|---|---|---|---|\n"
        "| ConVIRT | adapt.chunk_size | 8 (None) | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] |\n"
        "| ConVIRT | adapt.alpha | 0.50 (0.75) | +0.100 [+0.050, +0.150]** | +0.010 [+0.001, +0.020]* |\n",
    ),
}


def test_what_an_answer_costs_is_a_table(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/cost.csv").write_text(
        "what,batch,device,p50_ms,p99_ms,items_per_s,peak_mb,model_mb,bytes_per_request,gflops,calls,threads,dataset\n"
        "title,1,cpu,2.98,8.06,243.4,849,1.93,63.2,0.0081,200,1,beauty\n"
        "title,32,cpu,22.5,37.1,1362,850,1.93,63.2,0.0079,200,1,beauty\n"
    )
    (tmp_path / "s/onnx.csv").write_text(
        "what,products,accuracy,same,largest_difference,model_mb,dataset,method\n"
        "title_int8,400,0.8325,0.9925,0.061,0.75,beauty,convirt\n"
    )
    text = fill("<!-- icssl: s deployment -->\n<!-- /icssl -->\n", tmp_path)
    assert "| Title | 2.98 / 8.06 | 22.5 / 37.1 | 243 | 1,362 | 850 | 1.93 | 63 | 0.0079 |" in text
    assert "beauty, threads: 1. Exports of `convirt` on 400 products of Dev:" in text
    assert "Title, ONNX int8 0.8325 (99.2% of predictions as before, 0.75 MB)." in text


def test_recommended_is_shown_less_the_others(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/compare.csv").write_text(
        BEYOND["compare"][0] + "beauty,convirt,recommended,accuracy,0.05,-0.1,-0.15,-0.05,0.001,0.002\n"
    )
    text = fill("<!-- icssl: s recommended -->\n<!-- /icssl -->\n", tmp_path)
    assert "| recommended, on | less | 5% |\n|---|---|---|\n| beauty | ConVIRT | +0.100 [+0.050, +0.150]* |" in text


@pytest.mark.parametrize("what", BEYOND)
def test_statistics_beyond_the_paper_are_tables(tmp_path, what):
    csv, table = BEYOND[what]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / f"{what}.csv").write_text(csv)
    text = fill(f"<!-- icssl: s {what} -->\n<!-- /icssl -->\n", tmp_path)
    assert f"-->\n{table}" in text
    assert "nan" not in text


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
    for name in ("confusions.csv", "accuracy.csv", "a_neighbours.png"):
        (finished / "figures" / name).write_text("")
    publish("s", finished, tmp_path, words=False)
    assert {f.name for f in (tmp_path / "figures/s").iterdir()} & {"confusions.csv", "a_neighbours.png"} == set()
    publish("s", finished, tmp_path)
    assert (tmp_path / "figures/s/confusions.csv").is_file()  # of classes that are the project's own
    records = finished / "records/a"
    asked = [("origin", "cpu", "no", 2), ("convirt", "auto", "bf16", 3), ("tfidf", "auto", "bf16", 1)]
    for method, device, precision, fractions in asked:
        record = {"machine": {"cpu": "a CPU", "device": "a GPU"}, "settings": {"runtime": {"device": device}}}
        (records / method).mkdir(parents=True)
        record |= {"method": method, "precision": precision, "fractions": [{}] * fractions}
        (records / method / "seed0.json").write_text(json.dumps(record))
    publish("s", finished, tmp_path)
    counted = (tmp_path / "figures/s/hardware.csv").read_text()
    assert counted == 'where,classifiers\n"a GPU, bf16",3\n"a CPU, no",2\n"a CPU, TF-IDF",1\n'
    results = tmp_path / "figures/s/results.csv"
    results.write_text(results.read_text().replace("0.5", "0.6"))
    assert fill(text, tmp_path / "figures") != text  # a file that changed is noticed


def test_what_was_published_stays_when_a_run_is_absent_or_breaks(tmp_path, finished, monkeypatch):
    (tmp_path / "README.md").write_text("")
    publish("s", finished, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "figures/s").iterdir()}
    (finished / "figures/new.csv").write_text("")

    def die(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("icssl_lib.publish.shutil.copy", die)  # in the midst of it
        with pytest.raises(KeyboardInterrupt):
            publish("s", finished, tmp_path)
    (tmp_path / "collected").mkdir()
    (finished / "figures").rename(tmp_path / "collected/figures")
    command = r"python -m icssl_lib\.runs study CONFIG --out .*, with the configuration of 's'"
    for out, missing in (("absent", "figures"), ("runs", "figures"), ("collected", r"results\.csv")):
        with pytest.raises(FileNotFoundError, match=rf"{out}/{missing}: not there, .*{command}"):
            publish("s", tmp_path / out, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures/s").iterdir()} == before
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["s"]
