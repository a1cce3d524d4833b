"""What a net asks about the rows of its batch: over which devices they are spread.

A program that is one over all devices computes with whole batches, and nobody says anything. Where
each device has its own rows, who knows the devices says so while a net is traced (`spread`), and
what is a mean over the batch is taken over all of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from genaug.nets.told import told

_AXES: ContextVar[Any] = ContextVar("axes", default=None)


def spread(axes: tuple[str, ...]) -> AbstractContextManager[None]:
    """What is traced within has its rows spread over these axes of the devices."""
    return told(_AXES, axes)


def axes() -> Any:
    """What to take means of a batch over, as `lax.pmean` takes its axes; None for nothing."""
    return _AXES.get()
