"""From addresses to Table 2: a made-up shop served on 127.0.0.1, with traps. Fetch and catalogue are jobs of the DAG;
what follows is as in any other study, and runs here."""

import gzip
import json
import re
import subprocess

import numpy as np
import toys
from loopback import endless, picture, product, redirect, serving, truncated

from icssl_lib import dag
from icssl_lib.catalogue import open_catalogue
from icssl_lib.config import load_config
from icssl_lib.metrics import format_table2
from icssl_lib.runs import collect
from icssl_lib.stages import adapt_seeds, classify_seeds

PRODUCTS = 120  # sound ones
DEAD = {"gone": 404, "corrupt": b"%!PS", "too large": endless, "failed": truncated(picture()), "refused": 403}
ICON = "/images/G/01/x-site/icons/no-img-sm.gif"


def shop(server) -> bytes:
    """The metadata: sound products, some by way of a trap that costs nothing, and one of each lost kind."""
    rng, lines = np.random.default_rng(0), []
    for i in range(PRODUCTS):
        label = list(toys.COLOURS)[i % 4]
        server.answers[f"/41{i:02}+x.jpg"] = picture(toys.COLOURS[label])
        url = f"{server.url}/41{i:02}" + ("+x.jpg", "%2Bx._SX300_.jpg")[i % 2]
        title = f"{rng.choice(toys.BRANDS)} &amp; {label if i % 3 else ''} {i}"
        lines.append(product(2014, f"B{i:03}", title, ("Home", f"{label} &amp; more"), url))
    first, second = (server.answers[f"/410{i}+x.jpg"] for i in range(2))
    server.answers["/4100+x.jpg"] = [429, truncated(first), first]
    server.answers |= {"/4101+x.jpg": redirect("/moved.jpg"), "/moved.jpg": second}
    server.answers |= {"/icon.gif": redirect(ICON), ICON: picture(kind="GIF")}
    server.answers |= {f"/{status}.jpg".replace(" ", "%20"): answer for status, answer in DEAD.items()}
    lost = [f"{server.url}/{status}.jpg" for status in DEAD] + [f"{server.url}/icon.gif"]
    lost += ["http://ecx.images-amazon.com/images/I/41._SX300_.jpg", f"http://g-ecx.images-amazon.com{ICON}"]
    lines += [product(2014, f"D{i}", f"lost mug {i}", url=url) for i, url in enumerate(lost)]
    return gzip.compress("\n".join(lines).encode())


def test_from_addresses_to_table_2(tmp_path, tiny_text, tiny_vision, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    finetune = {"epochs": 40, "batch_size": 8, "lr": 3e-3, "fractions": [0.5, 1.0], "keep_classifiers": []}
    with serving() as server:
        server.answers["/meta.json.gz"] = shop(server)
        data = {"source": "amazon", "vintage": 2014, "meta": f"{server.url}/meta.json.gz", "folder": "data"}
        study = {"study": "mini", "seeds": [0], "methods": ["origin", "convirt"], "runtime": {"device": "cpu"}} | {
            "datasets": {"automotive": data | {"hosts": [server.host], "requests_per_second": 2000}},
            "text": {"model": str(tiny_text), "max_tokens": 8},
            "vision": {"model": f"local-dir:{tiny_vision}", "image_size": toys.SIZE},
            "adapt": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "projection_dim": 16},
            "finetune": finetune,
        }
        (tmp_path / "mini.yaml").write_text(json.dumps(study))
        (tmp_path / "out").mkdir()
        target = "catalogues/automotive/catalogue.json"
        command = dag.snakemake(tmp_path / "mini.yaml", tmp_path / "out", "--cores", "2", target)
        ran = subprocess.run(command, cwd=dag.ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(server.paths().count(path) == 1 for path in ["/meta.json.gz", "/4102+x.jpg", "/41119+x.jpg"])

    # Every trap is sprung and counted, and to each product its own picture
    out, study = tmp_path / "out", load_config(tmp_path / "mini.yaml")
    fetched = json.loads((out / "catalogues/automotive/fetched.json").read_text())
    assert fetched["pictures"] == dict.fromkeys(DEAD, 1) | {"ok": PRODUCTS, "placeholder": 1, "forbidden": 1}
    catalogue = open_catalogue(out / "catalogues/automotive")
    assert catalogue.products["id"].tolist() == [f"B{i:03}" for i in range(PRODUCTS)]
    assert set(catalogue.products["label"]) == {f"{label} & more" for label in toys.COLOURS}
    pixels = catalogue.images[catalogue.products["image_row"]]
    colours = np.array([toys.COLOURS[label.split()[0]] for label in catalogue.products["label"]])
    assert np.abs(pixels.mean((1, 2)) - colours).max() < 5
    once = ["picture corrupt", "picture too large", "no picture named"]
    dropped = {reason: count for reason, _, count, _ in catalogue.report.itertuples(index=False)}
    assert dropped == {"picture missing": 5} | dict.fromkeys(once, 1)

    adapt_seeds("automotive", "convirt", [0], catalogue, study, out)
    for method in ("origin", "convirt"):
        classify_seeds("automotive", method, [0], catalogue, study, out)
    results = collect(study, out)
    assert results.accuracy.max() >= 0.5  # of four classes; two titles in three name theirs
    table = format_table2(results)
    assert re.search(r"\n +ConVIRT +0\.\d+ +[01]\.\d+\n", table)
    assert re.search(r"\n +paper: ConVIRT +0\.697 +0\.721\n", table)
