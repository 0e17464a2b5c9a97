"""Printing: plain where nobody looks, coloured where a person does, and never a control character of others' making."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from rich.console import Console
from rich.text import Text

from rath.core.redact import redact_bytes, redact_text
from rath.display.diff import diff_lines
from rath.display.text import clean

__all__ = [
    "Part",
    "Screen",
    "Trouble",
    "err",
    "log_to_stderr",
    "out",
    "own_command",
    "prepare_streams",
    "settle_streams",
    "user_path",
]

Part: TypeAlias = "str | tuple[str, str]"
"""Text, or text and its style."""

_DIFF_STYLES = {"added": "green", "removed": "red", "hunk": "cyan", "file": "bold", "note": "dim", "context": ""}


class Trouble(Exception):
    """Ends a command with one line on stderr and an exit code: 2, wrong usage, unless it says otherwise."""

    def __init__(self, message: str, *, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class _Console(Console):
    """Lets a broken pipe be known: rich's own answer is to leave, with 1, past whoever has runs to stop."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Screen:
    """One of the two standard streams. Everything printed is made visible first (:func:`rath.display.text.clean`)."""

    def __init__(self, stream: TextIO) -> None:
        # No markup, no highlighting, no emoji codes: text of models and tools must mean itself.
        self.console = _Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._open_line = False

    @property
    def live(self) -> bool:
        """Whether a person looks, at a terminal that can redraw."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def line(self, *parts: Part) -> None:
        """Print one line; first end a line that :meth:`write` left open."""
        self.end_line()
        if self.console.is_terminal:
            self.console.print(styled(*parts))
            return
        # Without rich: ten thousand lines in 0.1 s, not 2.
        text = "".join(clean(part if isinstance(part, str) else part[0]) for part in parts)
        self.console.file.write(text.expandtabs() + "\n")
        self.console.file.flush()

    def prose(self, *parts: Part) -> None:
        """Print sentences: broken between words for a person, one line for a program."""
        self.end_line()
        self.console.print(styled(*parts), soft_wrap=not self.console.is_terminal)

    def write(self, text: str) -> None:
        """Print a piece of streamed text as it is, without a newline."""
        if text:
            visible = clean(text)
            self.console.out(visible, end="", highlight=False)
            self.console.file.flush()
            self._open_line = not visible.endswith("\n")

    def end_line(self) -> None:
        """End a line that :meth:`write` left open."""
        if self._open_line:
            self._open_line = False
            self.console.out("", highlight=False)

    def diff(self, diff: str) -> None:
        """Print a unified diff."""
        for style, line in diff_lines(redact_text(diff)):
            self.line((line, _DIFF_STYLES[style]))

    def json(self, value: Any, *, indent: int | None = 2) -> None:
        """Print one JSON value, redacted, for programs: ASCII only, so that no encoding can break it.

        Args:
            indent: ``None`` for a value on one line, as one of many.
        """
        try:
            text = json.dumps(value, indent=indent, default=str, allow_nan=False)
        except ValueError:  # 1e999 in a log is JSON, and infinite in Python; programs cannot read that
            finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _name: None)
            text = json.dumps(finite, indent=indent)
        text = redact_bytes(text.encode()).decode()
        self.console.file.write(text + "\n")
        self.console.file.flush()


def styled(*parts: Part) -> Text:
    """The parts as one rich text."""
    text = Text()
    for part in parts:
        words, style = (part, "") if isinstance(part, str) else part
        text.append(clean(words), style or None)
    return text


class _Stream:
    """``sys.stdout`` or ``sys.stderr`` as it is at each use: tests and callers may replace it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._screen: Screen | None = None

    def __call__(self) -> Screen:
        stream = getattr(sys, self._name)
        if self._screen is None or self._screen.console.file is not stream:
            self._screen = Screen(stream)
        return self._screen


out = _Stream("stdout")
err = _Stream("stderr")


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            err().line((f"{record.levelname.lower()}: {' '.join(redact_text(record.getMessage()).split())}", "yellow"))
        except Exception:
            self.handleError(record)


@contextmanager
def log_to_stderr(level: int) -> Iterator[None]:
    """Show what rath logs from ``level`` on, a line each, in this block."""
    logger, handler = logging.getLogger("rath"), _Warnings()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def prepare_streams() -> None:
    """Let no character be unprintable: a terminal that lacks one shows its escape. A closed stream is opened to nothing."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with `>&-`
            # As Python opens its own: never closed, and no warning of it.
            nothing = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, TextIOWrapper(FileIO(nothing, "w", closefd=False), encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def settle_streams() -> None:
    """Write out what is pending. A stream whose reader is gone is pointed at nothing: Python flushes it again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream.fileno())
                os.close(nothing)


def user_path(path: Path | str) -> Path:
    """A path from the command line, ``~`` expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise Trouble(f"{path}: {error}. Set HOME, or give the whole path") from error


def own_command() -> str:
    """What to type, here and now, to run this ``rath`` again: bare only where that is what the PATH finds."""
    started = Path(sys.argv[0])
    by_module = started.name in ("__main__.py", "main.py")
    script = Path(sys.executable).with_name("rath") if by_module else started
    found = shutil.which("rath")
    if found is not None and script.exists() and os.path.samefile(found, script):
        return "rath"
    if by_module:
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m rath"
    if started.name != "rath" or not started.is_file():  # called as a function, by some other program
        return "rath"
    return shlex.quote(_from_here(started))


def _from_here(program: Path) -> str:
    # Not resolved: a virtual environment's python is a link, and only by that name the environment's.
    program = program.absolute()
    try:
        shown = str(program.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(program)
    return shown if os.sep in shown else os.path.join(os.curdir, shown)
