"""Train a generative model on a small dataset and measure whether its samples help."""

__version__ = "0.1.0"
