# One command each; `make` alone lists them. Needs Python 3.11 or newer with venv, and make (GNU 3.81 or newer).
#
#   CONFIG=my.yaml       the study to run                     (study, plan)
#   CORES=2              how many cores to use; default all   (study, plan)
#   PROFILE=profiles/slurm   run the jobs on a cluster        (study)
#   ARGS="-k losses"     passed on to pytest, or to a benchmark
#   UPGRADE=--upgrade    move every pin to its newest version (lock)
#   PYTHON=/path/to/it   the Python that .venv is made from
#
# Paths here are relative, and tools are called as `python -m`, so a clone may lie in a folder of any name.

CONFIG ?= config/quick.yaml

# The first that runs, is new enough and can make an environment: a pyenv shim may exist and not run, and
# Debian's python3 may lack venv.
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)

# The stamp holds the folder that .venv was made for. It is missing after an interrupted set-up and wrong in a
# moved clone; then, or when its Python is gone, .venv is made anew.
USABLE := $(shell test "$$(cat .venv/stamp 2>/dev/null)" = "$$(pwd -P)" && .venv/bin/python -V 2>/dev/null)

# Some images forbid Python to keep what it compiles; then each of a study's processes would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE

# What is timed alone keeps freed memory, as a study's jobs do (MALLOC in icssl_lib/dag.py).
KEEP = MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=67108864

.PHONY: help study plan test lessons bench scale docs slurm lab lint lock unusable

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s  %s\n", $$1, $$2}' Makefile

study: .venv/stamp  ## run a study, from data to report (CONFIG=config/quick.yaml, CORES=all); resumes where it stopped
	.venv/bin/python -m icssl_lib.runs study "$(CONFIG)" $(if $(CORES),--cores $(CORES)) \
		$(if $(PROFILE),--profile "$(PROFILE)")

plan: .venv/stamp  ## print a study's steps, FLOPs and hours here; runs nothing (CONFIG=config/quick.yaml, CORES=all)
	$(KEEP) .venv/bin/python -m icssl_lib.runs plan "$(CONFIG)" $(if $(CORES),--cores $(CORES))

test: .venv/stamp  ## the whole test suite (ARGS="-k losses" for a part)
	.venv/bin/python -m pytest $(ARGS)

scale: .venv/stamp  ## the paper's scale, here: 200,000 products, full-size towers (31 GB of disk, an hour on 2 cores)
	.venv/bin/python benchmarks/scale_ingest.py --out figures/scale/ingest.csv
	.venv/bin/python benchmarks/paper_scale.py --chunk 8 --precision auto --out figures/scale/steps.csv
	MALLOC_ARENA_MAX=1 .venv/bin/python benchmarks/paper_scale.py --method simcse --precision auto --batch 64 \
		--steps 1 --out figures/scale/steps.csv
	MALLOC_ARENA_MAX=1 .venv/bin/python benchmarks/paper_scale.py --method simcse --precision auto --batch 1024 --chunk 64 \
		--steps 1 --out figures/scale/steps.csv
	@$(MAKE) docs

bench: .venv/bench  ## speed beside what users would run instead, and how cost grows (half an hour on 2 quiet cores)
	.venv/bin/python benchmarks/bench.py $(ARGS)
	$(KEEP) .venv/bin/python benchmarks/growth.py
	@$(MAKE) docs

docs: .venv/stamp  ## fill the tables in README.md and docs/ from the files in figures/
	.venv/bin/python -m cogapp -P -r -I benchmarks -p "from tables import *" README.md docs/*.md

lessons: .venv/stamp  ## execute every lesson and its solution; each within two minutes (ARGS="03 07" for some)
	.venv/bin/python notebooks/lessons/execute.py $(ARGS)

slurm: .venv/stamp  ## run the smoke study on a Slurm of one node, started for it (Debian, as root)
	bash tests/system/slurm_study.sh

lab: .venv/stamp  ## JupyterLab on the notebook that explores embeddings, and the others
	.venv/bin/python -m jupyterlab notebooks/explore_embeddings.ipynb

lint: .venv/stamp  ## ruff on code and notebooks; notebooks hold no outputs
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	find notebooks -name '*.ipynb' ! -path '*/.ipynb_checkpoints/*' \
		-exec .venv/bin/python -m nbstripout --verify --keep-id {} +

COMPILE = .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --quiet

lock: .venv/stamp  ## write the lock files from pyproject.toml (UPGRADE=--upgrade for the newest versions)
	$(COMPILE) --extra cluster --extra dev $(UPGRADE) -o requirements.lock
	$(COMPILE) --extra bench --constraints requirements.lock $(UPGRADE) -o requirements-bench.lock

# The peers of `make bench`, beside all else in .venv.
.venv/bench: .venv/stamp requirements-bench.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements-bench.lock
	@touch $@

# The stamp goes first and comes back last: whatever stops in between, the next call starts over.
NO_PYTHON = no Python 3.11 or newer with its venv module$(if $(PYTHON), at '$(PYTHON)'). Install one \
	(Debian, Ubuntu: apt-get install python3-venv) or name one: make PYTHON=/path/to/python3

.venv/stamp: requirements.lock pyproject.toml $(if $(USABLE),,unusable)
	$(if $(USABLE)$(shell "$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null && echo yes),,$(error $(NO_PYTHON)))
	@rm -f $@
	@test -n "$(USABLE)" || { echo "Making .venv with $(PYTHON); on Linux the first time downloads about 3 GB"; \
		"$(PYTHON)" -m venv --clear .venv && \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check uv; }
	.venv/bin/uv pip sync --python .venv/bin/python --require-hashes requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@pwd -P > $@
