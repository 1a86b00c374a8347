"""SIGTERM outside of a training loop. Nothing is imported here that takes time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def sigterm_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside `with`, SIGTERM calls `handler`; not in a thread beside the main one, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
