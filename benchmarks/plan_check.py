"""`make plan` against runs that really took place: how far apart are estimate and wall time?

python benchmarks/plan_check.py config/quick.yaml=figures/quick config/hm.yaml=figures/hm [--out figures/scale/plan.csv]

Each argument is a study and a folder that holds its wall.json. Fails when one is further off than --within.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from plan import plan

from icssl_lib.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", metavar="CONFIG=FOLDER")
    parser.add_argument("--within", type=float, default=1.5, help="the factor that is allowed, either way")
    parser.add_argument("--out", type=Path, help="a CSV for the documentation")
    options = parser.parse_args()
    rows = []
    for config, folder in (argument.split("=") for argument in options.studies):
        study = load_config(config)
        wall = json.loads((Path(folder) / "wall.json").read_text())
        estimate = plan(study, Path("runs") / study.study, wall["cores"]).attrs["hours"] * 60
        rows.append(
            {
                "study": study.study,
                "cores": wall["cores"],
                "planned_minutes": round(estimate, 1),
                "real_minutes": round(wall["seconds"] / 60, 1),
                "factor": round(wall["seconds"] / 60 / estimate, 2),
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out, index=False)
    if not table.factor.between(1 / options.within, options.within).all():
        raise SystemExit(f"an estimate is off by more than a factor of {options.within}")


if __name__ == "__main__":
    main()
