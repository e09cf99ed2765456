"""What every test shares: one thread, no hub, no screen, the same Hypothesis examples on each run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from icssl_lib.catalogue import Catalogue

# Before torch, tokenizers or matplotlib are imported; the notebooks' kernels inherit them.
SHARED = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
for name, value in SHARED.items():
    os.environ.setdefault(name, value)

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Where a fake tensor (an export's) came before the first backward pass, that one starts threads, and no fork has them.
torch.zeros(1, requires_grad=True).sum().backward()

settings.register_profile("reproducible", derandomize=True, deadline=None)  # no deadline: shared cores are slow
settings.load_profile("reproducible")


LONG = ["test_study", "test_amazon_study", "test_explore_browser", "test_lessons_browser", "test_scale"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun last, one of them would keep a single core busy while the others wait."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: BERT of one layer, width 32."""
    import toys

    return toys.save_text(tmp_path_factory.mktemp("tiny") / "text")


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's folder: ViT of one block, width 32."""
    import toys

    return toys.save_vision(tmp_path_factory.mktemp("tiny") / "vision")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> "Catalogue":
    """120 products with pictures."""
    import toys

    return toys.catalogue(tmp_path_factory.mktemp("toy"))
