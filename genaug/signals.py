"""SIGTERM and Ctrl-C: noticed at once, acted on where nothing is lost.

Python runs a signal's handler between two of its own instructions: a compiler or a long program is
not interrupted by it. So a thread watches too, which is told in any case. It ends the process when
it is told a second time, or when `GRACE_S` have passed and nothing is being saved.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

GRACE_S = 8.0
"""Seconds from a signal until the process is ended, whatever it does. (A pod gives 30.)"""


class Signals:
    """What this process was told while it trained, and what may be done about it."""

    def __init__(self, interruptible: bool):
        self.received = 0  # the number of the signal, or 0
        self.saving = False
        self._interruptible = interruptible

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal raises KeyboardInterrupt in the body."""
        before, self._interruptible = self._interruptible, True
        try:
            if self.received:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = before

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The body is let finish, however long it takes: something is being saved."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False

    def _note(self, number: int, frame: Any) -> None:
        self.received = self.received or number
        if self._interruptible:
            raise KeyboardInterrupt


@contextmanager
def heeded(interruptible: bool = False) -> Iterator[Signals]:
    """What comes while the body runs. One context may be within another.

    interruptible: whether the body may be left anywhere, by KeyboardInterrupt.

    Of several processes each is told by JAX (`processes.must_stop`), and threads are told nothing.
    """
    told = Signals(interruptible)
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield told
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {n: signal.signal(n, told._note) for n in (signal.SIGTERM, signal.SIGINT)}
    outer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, told), daemon=True).start()
    try:
        yield told
    finally:
        signal.set_wakeup_fd(outer)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # ends the thread


def _watch(reader: int, told: Signals) -> None:
    """Every signal is a byte here, also while the interpreter waits for a program."""
    try:
        first = _next(reader, None)
        if not first:
            return
        second = _next(reader, GRACE_S)
        while second is None and told.saving:
            second = _next(reader, 0.1)
        if second is None:
            _leave(first, f"not done within {GRACE_S:.0f} s; what was saved before is kept")
        elif second:
            _leave(second, "told twice; what was saved before is kept")
    finally:
        os.close(reader)


def _next(reader: int, seconds: float | None) -> int | None:
    """The next signal; 0 when the context has ended, None when the time is over."""
    while True:
        if not select.select([reader], [], [], seconds)[0]:
            return None
        byte = os.read(reader, 1)
        if not byte:
            return 0
        if byte[0] in (signal.SIGTERM, signal.SIGINT):
            return byte[0]


def _leave(number: int, words: str) -> None:
    print(f"\ngenaug: {signal.Signals(number).name}: {words}.", file=sys.stderr, flush=True)
    os._exit(128 + number)
