"""Cross-modal contrastive learning for item categorization, as a thin library; nothing is imported here, not torch."""

__version__ = "0.1.0"
