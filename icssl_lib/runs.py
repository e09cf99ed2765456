"""Running the study: paths, records, results.csv, and the command line (`python -m icssl_lib.runs --help`)."""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import cpu_count

from icssl_lib import dag
from icssl_lib.config import ConfigError, Run, Study, load_config, nearest
from icssl_lib.dag import RunError
from icssl_lib.files import written_whole

RESULTS = ["dataset", "method", "fraction", "seed", "n_train", "accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1"]
RESULTS += ["split_hash", "seconds"]


def path_of(out: Path, kind: str, run: Run) -> Path:
    """Where something of a run lies in the run folder, without suffix: kind/dataset/method/seed<k>."""
    return out / kind / run.dataset / run.method / f"seed{run.seed}"


def resolved(study: Study, out: Path) -> Study:
    """The study with models named "pretrained" replaced by the folders that notebook 00 wrote."""
    folders = {"text": str(out / "pretrained/text"), "vision": f"local-dir:{out / 'pretrained/vision'}"}
    own = {name: getattr(study, name) for name in folders if getattr(study, name).model == "pretrained"}
    return study.model_copy(update={name: s.model_copy(update={"model": folders[name]}) for name, s in own.items()})


def digest(*parts: Any) -> str:
    """A short hash of configuration sections and plain values."""
    text = json.dumps(parts, sort_keys=True, default=lambda part: part.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def machine() -> dict[str, Any]:
    """What a record says of hardware and software."""
    import torch  # the DAG and papermill need not wait for it

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    amx = ", AMX" if torch.cpu.get_capabilities().get("amx_bf16") else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    hardware = {"cpu": cpu, "instructions": torch.backends.cpu.get_cpu_capability() + amx, "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    return hardware | {"device": device, "system": platform.platform()} | versions


def save_record(run: Run, study: Study, out: Path, found: dict[str, Any], predictions: pd.DataFrame) -> None:
    """Write the predictions of a run (parquet), then its record (JSON): what was found, settings, machine, checksum."""
    table, record = path_of(out, "predictions", run), path_of(out, "records", run)
    for path in (table, record):
        path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(table.with_suffix(".parquet")) as part:
        predictions.to_parquet(part, index=False, write_page_checksum=True)
    sections = {"text", "vision", "adapt", "finetune", "runtime"}
    settings = study.of(run.method).model_dump(mode="json", include=sections)
    content = asdict(run) | found | {"settings": settings, "machine": machine()}
    with written_whole(record.with_suffix(".json")) as part:
        part.write_text(json.dumps(content | {"checksum": digest(content)}, indent=1))


def collect(study: Study, out: Path) -> pd.DataFrame:
    """All records of the study as results.csv, in the order of the configuration; an equal file is left alone.
    Raises: FileNotFoundError: one is missing. RunError: one is not as it was written."""
    rows, table = [], out / "results.csv"
    for run in (Run(d, m, k) for d in study.datasets for m in study.methods for k in study.seeds):
        path = path_of(out, "records", run).with_suffix(".json")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such record; run notebook 03 for it, or `make study`")
        record = {"checksum": "no JSON"}
        with contextlib.suppress(ValueError):
            record = json.loads(path.read_text("utf-8", "replace"))
        if record.pop("checksum", None) not in (None, digest(record)):  # None: of an earlier edition
            raise RunError(f"{path}: not as it was written; delete it, then `make study` makes it again")
        rows += [scores | {"split_hash": record["split_hash"]} for scores in record["fractions"]]
    results = pd.DataFrame(rows)[RESULTS]
    text = results.to_csv(index=False, float_format="%.6f").encode()
    if not table.is_file() or table.read_bytes() != text:
        with written_whole(table) as part:
            part.write_bytes(text)
    return results


def run_study(config: Path, study: Study, out: Path, cores: int | None, profile: Path | None) -> None:
    """Run or finish a study (see `dag.run`); print Table 2 and where everything lies."""
    for name, source in study.datasets.items():
        if source.source == "table" and not source.table.is_file():  # Snakemake would only miss an input
            near = nearest(source.table.name, [path.name for path in source.table.parent.glob("*")])
            raise ConfigError(f"datasets.{name}.table: no such file: {source.table}; {near}")
    if profile is not None and not any(profile.glob("config*.yaml")):
        raise ConfigError(f"--profile: {profile} is no folder with a Snakemake profile, such as profiles/slurm")
    if {study.text.model, study.vision.model} != {"pretrained"}:
        from icssl_lib.classify import check_models  # with torch, for which the embedded catalogue need not wait

        check_models(study)
    wall = dag.run(config, study, out, cores, profile)
    from icssl_lib.metrics import format_table2  # with scikit-learn, for which jobs need not wait

    for name in study.datasets:
        for row in pd.read_csv(out / f"catalogues/{name}/report.csv", keep_default_na=False).itertuples():
            print(f"{name}: {row[3]} {row.action}: {row.reason} (e.g. {row.example})")
    print(f"\n{format_table2(pd.read_csv(out / 'results.csv'))}\n")
    size = wall["largest_process_gb"]
    where = f"through {profile}" if profile else f"on {wall['cores']} cores, the largest process had {size:.1f} GB"
    print(f"Done in {wall['seconds'] / 60:.1f} minutes {where}. In {out}:")
    print("  report/index.html        the report: open it in a browser\n  results.csv              every number")
    print("  encoders/, classifiers/  plain Hugging Face folders; figures/, predictions/, notebooks/")


def fetch_datasets(study: Study, out: Path, only: str | None = None) -> None:
    """Fetch metadata and pictures of the datasets that have some; what came is counted in fetched.json of each.
    Raises: ConfigError: no such dataset. CatalogueError: see icssl_lib.sources.fetch."""
    from icssl_lib.sources.fetch import fetch  # jobs need not wait for httpx and pandas

    remote = [name for name, source in study.datasets.items() if source.source == "amazon"]
    if only is not None and only not in remote:
        raise ConfigError(f"datasets: no dataset '{only}' that is fetched; {nearest(only, remote)}")
    for name in [only] if only else remote:
        counted, path = json.dumps(fetch(name, study.datasets[name]), indent=1), out / f"catalogues/{name}/fetched.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != counted:  # else the catalogue would run again
            with written_whole(path) as part:
                part.write_text(counted, encoding="utf-8")
        print(f"{name}: {counted}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="icssl_lib.runs", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    execute = commands.add_parser("execute")
    execute.add_argument("notebook", type=Path)
    execute.add_argument("output", type=Path)
    execute.add_argument("parameters", nargs="*", metavar="name=value")
    execute.add_argument("--gpus", type=int, default=0, help="how many GPUs of this machine the job is to have")
    study, plan, fetch, collect = (commands.add_parser(name) for name in ("study", "plan", "fetch", "collect"))
    for command in (study, plan, fetch, collect):
        command.add_argument("config", type=Path)
        command.add_argument("--out", type=Path, help="default: runs/<study>")
    for command in (study, plan):
        command.add_argument("--cores", type=int, help="jobs at a time; default: one per core")
    study.add_argument("--profile", type=Path, help="a Snakemake profile, such as profiles/slurm")
    fetch.add_argument("--dataset", help="default: all that are fetched (source: amazon)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    dag.exit_with_study()
    try:
        if options.command == "execute":
            # jsonschema would compile a grammar of addresses, a second of CPU, that no notebook has a use for.
            sys.modules.setdefault("rfc3987_syntax", None)
            from icssl_lib import notebooks  # with papermill, a second that no other command needs

            with dag.own_gpus(options.gpus, Path.cwd()):
                values = notebooks.values_of(options.notebook, options.parameters)
                notebooks.execute(options.notebook, options.output, values)
            return 0
        study = load_config(options.config)
        dag.check_methods(study)
        out = options.out or Path("runs") / study.study
        if options.command == "study":
            run_study(options.config, study, out, options.cores, options.profile)
        elif options.command == "plan":
            sys.path.append(str(dag.ROOT / "benchmarks"))  # it measures
            import plan  # with torch, seconds that no other command needs

            print(plan.show(plan.plan(study, out, options.cores or cpu_count())))
        elif options.command == "fetch":
            fetch_datasets(study, out, options.dataset)
        else:
            collect(study, out)
    except (RunError, ValueError, OSError, KeyboardInterrupt) as error:  # Config-, Catalogue-, ModelError: ValueErrors
        print(f"error: {str(error) or 'interrupted; the same command goes on'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
