"""The command line as a user has it: a process of its own, an environment of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CONTROL", "Ran", "environment", "rath", "rath_at_a_terminal", "start_rath", "write_script"]

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_KEYS = re.compile(r"^(OPENAI|ANTHROPIC|RATH|OPENRATH)_|^(NO_COLOR|FORCE_COLOR|COLUMNS|LINES|DOCKER_HOST)$")


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without keys and settings; data goes to ``home/.openrath``, no Docker engine is found."""
    kept = {name: value for name, value in os.environ.items() if not _KEYS.search(name)}
    kept |= {"OPENRATH_HOME": str(home / ".openrath"), "DOCKER_HOST": f"unix://{home}/no-engine.sock", "TERM": "xterm"}
    return kept | dict(extra or {})


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "rath", *arguments]


def rath(home: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 40) -> Ran:
    """Run ``rath`` with ``home`` as the working directory, output piped."""
    done = subprocess.run(
        command(arguments), cwd=home, env=environment(home, env), capture_output=True, timeout=timeout, check=False
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def start_rath(home: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start ``rath`` and return its process, for tests that interrupt it."""
    return subprocess.Popen(
        command(arguments),
        cwd=home,
        env=environment(home, env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def rath_at_a_terminal(home: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 40) -> tuple[int, str]:
    """Run ``rath`` at a pseudo-terminal; its exit code and everything it wrote there."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(arguments), cwd=home, env=environment(home, env), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    written, deadline = b"", time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # the other end is closed
                    break
                if not data:
                    break
                written += data
        return process.wait(5), written.decode()
    finally:
        os.close(master)
        if process.poll() is None:
            process.kill()
            process.wait()


def write_script(path: Path, *replies: Any, **settings: Any) -> str:
    """Write a scripted model's file and return the ``--model`` that means it."""
    path.write_text(json.dumps({"replies": list(replies), **settings}), encoding="utf-8")
    return f"scripted:{path}"
