"""What a run folder holds, as tables, and as one page that needs no network: ``report/index.html``."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml

from icssl_lib import figures, metrics
from icssl_lib.catalogue import PARTS, Catalogue, head_tail, open_catalogue
from icssl_lib.config import Study
from icssl_lib.images import written_whole
from icssl_lib.paper import TABLE1
from icssl_lib.runs import RunError, piece

FIGURES = {
    "figure5": "Figure 5. Macro-F1 of head and tail",
    "accuracy": "Accuracy against the fraction of Train",
    "label_efficiency": "Label efficiency",
}


def read_results(out: Path) -> pd.DataFrame:
    """``results.csv`` of a run folder.

    Raises:
        RunError: there are no results yet.
    """
    return _read_csv(out / "results.csv")


def read_predictions(out: Path, results: pd.DataFrame) -> pd.DataFrame:
    """The predictions behind ``results``: dataset, method, fraction, seed, id, label, predicted, confidence.

    Raises:
        RunError: a file is missing.
    """
    frames = []
    for dataset, method, seed in results[["dataset", "method", "seed"]].drop_duplicates().itertuples(index=False):
        path = piece(out, "predictions", dataset, method, seed).with_suffix(".parquet")
        if not path.is_file():
            raise RunError(f"{path}: no such predictions; run `make study` first")
        frames.append(pd.read_parquet(path))
    return pd.concat(frames, ignore_index=True)


def class_sizes(catalogues: Sequence[Catalogue]) -> pd.DataFrame:
    """Columns dataset, label, rank, count (in Train), part (head or tail); Test's labels absent from Train count 0."""
    frames = []
    for catalogue in catalogues:
        counts = catalogue.label_counts
        absent = sorted(set(catalogue.part("test")["label"]) - set(counts.index))
        counts = pd.concat([counts, pd.Series(0, index=absent, dtype=counts.dtype)])
        head, tail = head_tail(counts)
        labels = [*head, *tail]
        frame = pd.DataFrame({"dataset": catalogue.name, "label": labels, "rank": range(1, len(labels) + 1)})
        part = ["head"] * len(head) + ["tail"] * len(tail)
        frames.append(frame.assign(count=counts[labels].to_numpy(), part=part))
    return pd.concat(frames, ignore_index=True)


def heads_and_tails(out: Path, datasets: Sequence[str]) -> dict[str, metrics.HeadTail]:
    """Dataset -> (head labels, tail labels), from the run's catalogues.

    Raises:
        CatalogueError: a catalogue is absent or incomplete.
    """
    sizes = class_sizes([open_catalogue(out / "catalogues" / name) for name in datasets])
    labels = sizes.groupby(["dataset", "part"])["label"].agg(list)
    return {name: (labels[name, "head"], labels.get((name, "tail"), [])) for name in datasets}


def table1(catalogues: Sequence[Catalogue]) -> pd.DataFrame:
    """Table 1: products, classes, mean title length and the split of each dataset; the paper's row below ours."""
    rows = []
    for catalogue in catalogues:
        products = catalogue.products
        row = {
            "dataset": catalogue.name,
            "source": "this run",
            "products": len(products),
            "classes": products["label"].nunique(),
            "words": round(products["title"].str.split().str.len().mean(), 2),
        }
        rows.append(row | {part: int((products["part"] == part).sum()) for part in PARTS})
        theirs = TABLE1[TABLE1["dataset"] == catalogue.name.lower()].assign(dataset=catalogue.name, source="paper")
        rows += theirs.to_dict("records")
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(PARTS, "Int64"))


def build(study: Study, out: Path) -> Path:
    """Write ``report/index.html`` from the files of a finished run, and each executed notebook as HTML.

    Reads results.csv, catalogues/, records/, encoders/*/history.csv and space.csv, and the tables and pictures that
    notebooks 01, 04 and 05 left in figures/.

    Returns:
        The path of the page.

    Raises:
        RunError: a file of the run is missing.
    """
    from jinja2 import Environment

    results = read_results(out)
    catalogues = [open_catalogue(out / "catalogues" / name) for name in study.datasets]
    page = {
        "study": study.study,
        "datasets": list(study.datasets),
        "methods": [metrics.method_name(m) for m in study.methods],
        "seeds": len(study.seeds),
        "minutes": results["seconds"].sum() / 60,
        "table2": _table(metrics.wide(metrics.table2(results)).reset_index()),
        "differences": _table(metrics.wide_differences(_read_csv(out / "figures" / "differences.csv")).reset_index()),
        "figures": _results_figures(results, out),
        "tails": _tails(catalogues, out),
        "space": _space_figures(study, out),
        "table1": _table(table1(catalogues)),
        "ingest": [(c.name, _table(c.report) if len(c.report) else "") for c in catalogues],
        "machines": _machines(study, out),
        "configuration": yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "notebooks": _notebooks(out),
    }
    html = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE).render(page)
    path = out / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return path


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise RunError(f"{path}: not there yet; run `make study` first (or the notebook that writes it)")
    return pd.read_csv(path)


def _table(frame: pd.DataFrame) -> str:
    """HTML of a table, its texts escaped."""
    from markupsafe import Markup

    frame = frame.rename(columns=lambda name: {"ssl": "SSL"}.get(name, name.capitalize()))
    frame = frame.astype(object).where(frame.notna(), "–")
    return Markup(frame.to_html(index=False, border=0, float_format=lambda x: f"{x:.3f}", escape=True))


def _picture(path: Path, title: str, caption: str) -> dict[str, str]:
    """A saved SVG as a data address, with its title and caption."""
    if not path.is_file():
        raise RunError(f"{path}: not there yet; run `make study` first (or the notebook that writes it)")
    data = base64.b64encode(path.read_bytes()).decode()
    return {"data": f"data:image/svg+xml;base64,{data}", "title": title, "caption": caption}


def _results_figures(results: pd.DataFrame, out: Path) -> list[dict[str, str]]:
    efficiency = _read_csv(out / "figures" / "label_efficiency.csv")
    captions = {
        "figure5": figures.caption("figure5", results),
        "accuracy": figures.caption("accuracy_curves", results),
        "label_efficiency": figures.caption("label_efficiency", efficiency),
    }
    return [_picture(out / "figures" / f"{name}.svg", title, captions[name]) for name, title in FIGURES.items()]


def _tails(catalogues: Sequence[Catalogue], out: Path) -> list[dict[str, str]]:
    return [
        _picture(
            out / "figures" / f"{c.name}_class_sizes.svg",
            f"Figure 4. The long tail of {c.name}",
            figures.caption("class_sizes", class_sizes([c])),
        )
        for c in catalogues
    ]


def _space_figures(study: Study, out: Path) -> list[dict[str, str]]:
    """Loss curves, alignment and uniformity of all adapted encoders, drawn from the files beside them."""
    titles = {
        "loss_curves": ("history.csv", "Loss of adaptation"),
        "space": ("space.csv", "The space, before and after"),
    }
    pictures = []
    for name, (file, title) in titles.items():
        frames = []
        for dataset in study.datasets:
            for method in study.methods:
                for seed in study.seeds:
                    path = piece(out, "encoders", dataset, method, seed) / file
                    if path.is_file():
                        frames.append(pd.read_csv(path).assign(dataset=dataset, method=method, seed=seed))
        if not frames:
            continue
        frame = pd.concat(frames, ignore_index=True)
        if name == "loss_curves":
            frame = figures.smooth(frame)
            fig = figures.loss_curves(frame, points=None)
        else:
            fig = figures.space(frame)
        figures.save(fig, frame, out / "figures" / name)
        plt.close(fig)
        pictures.append(_picture(out / "figures" / f"{name}.svg", title, figures.caption(name, frame)))
    return pictures


def _machines(study: Study, out: Path) -> list[dict[str, object]]:
    """The different machines and software versions in the records, with the number of runs on each."""
    counted: dict[str, int] = {}
    for dataset in study.datasets:
        for method in study.methods:
            for seed in study.seeds:
                path = piece(out, "records", dataset, method, seed).with_suffix(".json")
                if path.is_file():
                    machine = json.dumps(json.loads(path.read_text(encoding="utf-8")).get("machine", {}))
                    counted[machine] = counted.get(machine, 0) + 1
    return [{"runs": n} | json.loads(machine) for machine, n in counted.items()]


def _notebooks(out: Path) -> dict[str, list[tuple[str, str]]]:
    """Convert the executed notebooks to HTML beside them; kind (01_catalogue, ...) -> (name, link from the page)."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", require_js_url="", jquery_url="", mermaid_js_url="")
    links: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        if path.name.endswith(".failed.ipynb"):
            continue
        target = path.with_suffix(".html")
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            body, _ = exporter.from_notebook_node(nbformat.read(path, 4), {"metadata": {"name": path.stem}})
            with written_whole(target) as partial:
                partial.write_text(body, encoding="utf-8")
        kind, _, rest = path.stem.partition("-")
        links.setdefault(kind, []).append((rest or kind, f"../notebooks/{target.name}"))
    return links


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ study }}: report</title>
<style>
:root { color-scheme: light dark; --ink: #1b1b1b; --page: #fff; --soft: #666; --line: #d8d8d8;
  --row: #f5f5f5; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --page: #16181b; --soft: #a0a0a0; --line: #3a3d42; --row: #1f2226; --link: #79b8ff; }
}
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--page); }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin-bottom: .3rem; }
a { color: var(--link); } .soft, figcaption { color: var(--soft); }
nav a { margin-right: 1rem; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:nth-child(-n+2), td:nth-child(-n+2), .texts td, .texts th { text-align: left; }
tbody tr:nth-child(even) { background: var(--row); }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; padding: .8rem; background: var(--row); font-size: .8rem; }
@media (max-width: 45rem) { img { max-width: none; } }
li { overflow-wrap: anywhere; } .columns { columns: 16rem; font-size: .9rem; }
</style>
</head>
<body>
{% macro show(p) %}
<figure><h3>{{ p.title }}</h3>
<div class="wide"><img src="{{ p.data }}" alt="{{ p.title }}: {{ p.caption }}"></div>
<figcaption>{{ p.caption }}</figcaption></figure>
{% endmacro %}
<h1>{{ study }}</h1>
<p class="soft">{{ datasets | join(", ") }} · {{ methods | join(", ") }} · {{ seeds }} seed{{ "s" if seeds != 1 }} ·
{{ "%.0f" | format(minutes) }} minutes of fine-tuning</p>
<nav><a href="#results">Results</a><a href="#data">Data</a><a href="#adaptation">Adaptation</a>
<a href="#notebooks">Notebooks</a><a href="#how">How it was made</a></nav>

<h2 id="results">Results</h2>
<h3>Table 2. Test accuracy by fraction of Train</h3>
<p>Means over seeds. Rows named “paper” are from Chen and Chou (2022), Table 2, where a dataset here bears a genre's
name: their catalogues and full-size BERT, so the pattern compares, not the height.</p>
<div class="wide">{{ table2 }}</div>
<h3>Difference from BERT (origin)</h3>
<p>Mean over seeds, in brackets the 95% interval of a paired bootstrap over items and seeds. An interval that holds
zero does not tell the two apart.</p>
<div class="wide texts">{{ differences }}</div>
{% for p in figures %}{{ show(p) }}{% endfor %}

<h2 id="data">Data</h2>
<h3>Table 1. The catalogues</h3>
<div class="wide">{{ table1 }}</div>
{% for p in tails %}{{ show(p) }}{% endfor %}
{% for name, table in ingest %}
<h3>Ingest of {{ name }}</h3>
{% if table %}<div class="wide texts">{{ table }}</div>{% else %}<p>Nothing was dropped or repaired.</p>{% endif %}
{% endfor %}

<h2 id="adaptation">Adaptation</h2>
{% for p in space %}{{ show(p) }}{% else %}<p>No method of this study adapts the encoder.</p>{% endfor %}

<h2 id="notebooks">Notebooks, as executed</h2>
{% for kind, links in notebooks.items() %}
<details{{ " open" if links | length < 8 }}><summary>{{ kind }} ({{ links | length }})</summary>
<ul class="columns">
{% for name, link in links %}<li><a href="{{ link | urlencode }}">{{ name }}</a></li>{% endfor %}
</ul>
</details>
{% endfor %}

<h2 id="how">How it was made</h2>
{% for machine in machines %}
<p>{% for key, value in machine.items() %}{{ key }}: {{ value }}{{ " · " if not loop.last }}{% endfor %}</p>
{% endfor %}
<details><summary>Configuration, defaults included</summary><pre>{{ configuration }}</pre></details>
</body>
</html>
"""
