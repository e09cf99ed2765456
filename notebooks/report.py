"""What a run folder holds, as tables; and the report, `report/index.html`: the executed notebooks, readable offline."""

import base64
import shutil
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from docutils.utils.math.latex2mathml import tex2mathml
from jinja2 import DictLoader, Environment, FileSystemLoader
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from icssl_lib import metrics
from icssl_lib.catalogue import Catalogue, head_tail, open_catalogue
from icssl_lib.config import Run, Study, load_config
from icssl_lib.dag import ROOT, exit_with_study
from icssl_lib.files import written_whole
from icssl_lib.runs import RunError, path_of

ONLINE = ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")  # nbconvert's blocks
OFFLINE = "{% extends 'lab/index.html.j2' %}" + "".join(f"{{% block {b} %}}{{% endblock {b} %}}" for b in ONLINE)


def there(path: Path) -> Path:
    """``path``. Raises: RunError: there is no such file."""
    if not path.is_file():
        raise RunError(f"{path}: not there yet; run `make study` first (or the notebook that writes it)")
    return path


def read_results(out: Path) -> pd.DataFrame:
    return pd.read_csv(there(out / "results.csv"))


def read_predictions(out: Path, results: pd.DataFrame) -> pd.DataFrame:
    """The predictions behind ``results``: dataset, method, fraction, seed, id, label, predicted, confidence."""
    runs = results[["dataset", "method", "seed"]].drop_duplicates().itertuples(index=False)
    paths = [path_of(out, "predictions", Run(*run)).with_suffix(".parquet") for run in runs]
    tables = (pd.read_parquet(there(path), page_checksum_verification=True) for path in paths)
    return pd.concat(tables, ignore_index=True)


def class_sizes(catalogues: Sequence[Catalogue]) -> pd.DataFrame:
    """Columns dataset, label, rank, count (in Train), part (head or tail); Test's labels absent from Train count 0."""
    frames = []
    for catalogue in catalogues:
        counts, in_test = catalogue.label_counts, catalogue.part("test")["label"].unique()
        counts = counts.reindex(counts.index.union(in_test), fill_value=0)
        head, tail = head_tail(counts)
        frame = counts[[*head, *tail]].rename_axis("label").reset_index(name="count")
        frame["part"] = np.where(frame.index < len(head), "head", "tail")
        frames.append(frame.assign(dataset=catalogue.name, rank=frame.index + 1))
    return pd.concat(frames, ignore_index=True)


def heads_and_tails(out: Path, datasets: Sequence[str]) -> dict[str, metrics.HeadTail]:
    """Dataset -> (head labels, tail labels), from the run's catalogues."""
    sizes = class_sizes([open_catalogue(out / "catalogues" / name) for name in datasets])
    labels = sizes.groupby(["dataset", "part"])["label"].agg(list)
    return {name: (labels[name, "head"], labels.get((name, "tail"), [])) for name in datasets}


def gained_and_lost(predictions: pd.DataFrame) -> pd.DataFrame:
    """Test items that a method gets right and `origin` wrong (gained), or the reverse (lost), in more than half of the
    seeds: columns dataset, fraction, label, id, method, margin (share of the seeds in which the method is right, less
    that of `origin`), change (gained or lost), instead (what the side that is wrong says most often)."""
    item, right = ["dataset", "fraction", "label", "id"], predictions["label"] == predictions["predicted"]
    share = right.groupby([predictions[c] for c in [*item, "method"]], sort=False).mean().unstack("method")
    margin, theirs = share.sub(share[metrics.BASELINE], axis=0), share[metrics.BASELINE] - 0.5
    changed = margin[(share - 0.5).mul(theirs, axis=0) < 0].stack().dropna().rename("margin").reset_index()
    changed["change"] = np.where(changed["margin"] > 0, "gained", "lost")
    changed["wrong"] = changed["method"].where(changed["margin"] < 0, metrics.BASELINE)
    misses = predictions[~right].groupby([*item, "method"])["predicted"].value_counts().reset_index()
    misses = misses.rename(columns={"method": "wrong", "predicted": "instead"}).drop_duplicates([*item, "wrong"])
    return changed.merge(misses.drop(columns="count"), on=[*item, "wrong"]).drop(columns="wrong")


def convert(notebook: Path) -> Path:
    """The executed notebook as a page beside it that needs neither network nor other files, and leads to the report."""
    page = notebook.with_suffix(".html")
    if not page.exists() or page.stat().st_mtime < notebook.stat().st_mtime:
        exporter = HTMLExporter(template_file="offline", extra_loaders=[DictLoader({"offline": OFFLINE})])
        renderer = IPythonRenderer(allow_harmful_protocols=False)  # by default it escapes HTML as well
        # Formulas become MathML, which browsers draw by themselves; nbconvert's own would load MathJax.
        renderer.inline_math, renderer.block_math = tex2mathml, partial(tex2mathml, as_block=True)
        exporter.register_filter("markdown2html", MarkdownWithMath(renderer=renderer).render)
        node = nbformat.read(notebook, 4)
        node.cells.insert(0, nbformat.v4.new_markdown_cell("[Report](../report/index.html)"))
        body, _ = exporter.from_notebook_node(node, {"metadata": {"name": notebook.stem}})
        with written_whole(page) as part:
            part.write_text(body, encoding="utf-8", errors="backslashreplace")
    return page


def retire(out: Path, current: Collection[Path]) -> None:
    """Move to ``out/earlier`` executed notebooks, maps and classifiers that are not ``current``: of settings that are
    gone. A notebook that is not of this study's kinds, a person's own, stays."""
    kinds = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - {"00_pretrain"}
    stems, folders = {path.stem for path in current}, {path.parent for path in current}
    names = {path: path.name.split(".")[0] for path in (out / "notebooks").iterdir()}
    stale = [path for path, name in names.items() if name not in stems and name.split("-")[0] in kinds]
    stale += [path for path in out.glob("classifiers/*/*/*/*") if path not in folders]
    stale += [path for path in out.glob("report/map-*.html") if path not in current]
    for path in stale:
        target = out / "earlier" / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier move
        shutil.move(path, target)


def build(study: Study, out: Path, current: Collection[Path]) -> Path:
    """Write each executed notebook as a page, and `report/index.html`, which leads to them. ``current``: notebooks,
    maps and files of classifiers; see `retire`. Raises: RunError."""
    retire(out, current)
    for needed in ("figures/figure5.svg", "notebooks/04_table2.ipynb", "notebooks/05_figure5.ipynb"):
        there(out / needed)
    results, notebooks = read_results(out), sorted((out / "notebooks").glob("*.ipynb"))
    parts = metrics.summary(results).set_index(["dataset", "method", "fraction"])[["head_macro_f1", "tail_macro_f1"]]
    parts = parts.unstack("fraction", sort=False).rename(index=metrics.method_name, level="method")
    parts = parts.rename(columns=metrics.METRIC_NAMES).rename(columns=lambda f: f"{100 * f:g}%", level="fraction")
    tables = {"table2": metrics.wide(metrics.table2(results)), "parts": parts}
    look = {"float_format": "{:.3f}".format, "na_rep": "", "border": 0, "index_names": False}
    page = {name: table.to_html(**look) for name, table in tables.items()} | {
        "study": study,
        "figure5": base64.b64encode((out / "figures/figure5.svg").read_bytes()).decode(),
        "maps": [name for name in study.datasets if (out / "report" / f"map-{name}.html").is_file()],
        "notebooks": [convert(path) for path in notebooks if not path.name.endswith(".failed.ipynb")],
    }
    index = out / "report" / "index.html"
    index.parent.mkdir(parents=True, exist_ok=True)
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("report.html")
    with written_whole(index) as part:
        part.write_text(template.render(page), encoding="utf-8", errors="backslashreplace")
    return index


if __name__ == "__main__":  # python notebooks/report.py CONFIG OUT CURRENT...
    exit_with_study()
    folder = Path(sys.argv[2])
    build(load_config(sys.argv[1]), folder, [folder / name for name in sys.argv[3:]])
