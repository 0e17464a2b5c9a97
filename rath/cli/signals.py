"""SIGTERM and SIGHUP end a command as Ctrl-C does: runs are cancelled, children killed, sandboxes released."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["exit_code", "like_ctrl_c", "reason"]

_received = signal.SIGINT


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """In this block both raise ``KeyboardInterrupt`` in the main thread, wherever Ctrl-C would."""
    global _received
    _received = signal.SIGINT
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Ignored means that somebody wants it so: nohup does that with SIGHUP.
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    global _received
    _received = signal.Signals(number)
    # Asyncio has a handler of its own for Ctrl-C while a loop runs: it is to be asked, not gone around.
    ctrl_c = signal.getsignal(signal.SIGINT)
    if callable(ctrl_c):
        ctrl_c(signal.SIGINT, frame)
    else:  # started in the background of a script: Ctrl-C is ignored there
        raise KeyboardInterrupt


def exit_code() -> int:
    """What a command that was interrupted exits with: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + _received


def reason() -> str:
    """What interrupted it, for people."""
    return "Ctrl-C" if _received is signal.SIGINT else _received.name
