"""Train a generative model on a small dataset and measure whether its samples help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_sampler", "mix"]

if TYPE_CHECKING:
    from genaug.bundle import load_sampler
    from genaug.data.synthetic import mix


def __getattr__(name: str) -> Any:
    """What other programs import, read when it is asked for: `genaug --help` needs no JAX."""
    if name == "load_sampler":
        from genaug.bundle import load_sampler

        return load_sampler
    if name == "mix":
        from genaug.data.synthetic import mix

        return mix
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
