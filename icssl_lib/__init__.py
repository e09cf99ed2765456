"""icssl_lib: cross-modal contrastive learning for item categorization, as a thin library.

Nothing is imported here, so that ``import icssl_lib`` stays free of torch."""

__version__ = "0.1.0"
