"""Where catalogues come from: each module has ``load(name, source) -> RawCatalogue``."""

from importlib import import_module

from icssl_lib.catalogue import RawCatalogue
from icssl_lib.config import SourceConfig


def load(name: str, source: SourceConfig) -> RawCatalogue:
    """Load dataset ``name`` by the module that bears its ``source``'s name.

    Raises:
        CatalogueError: see the modules.
    """
    return import_module(f"{__name__}.{source.source}").load(name, source)
