"""What a net is told while it is traced, by who knows what it does not: the devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def told(variable: ContextVar[T], value: T) -> Iterator[None]:
    """What is traced within finds this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
