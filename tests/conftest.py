"""What every test shares: one thread, no hub, no screen, the same Hypothesis examples on each run."""

import os
from pathlib import Path

import pytest

# Before torch, tokenizers or matplotlib are imported; the notebooks' kernels inherit them.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(name, value)

from hypothesis import settings  # noqa: E402

settings.register_profile("reproducible", derandomize=True, deadline=None)  # no deadline: shared cores are slow
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).parents[1]
