"""Commands and code as requests to a guest, and what it says about them as results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rath.backend.answers import composed, exit_status, output_so_far
from rath.backend.calls import (
    BackendToolCodeRun,
    BackendToolCommandRun,
    CodeResult,
    CommandResult,
    ToolExecutionFailure,
    ToolResult,
)
from rath.backend.code import command_for
from rath.backend.guest.channel import Channel
from rath.backend.guest.config import KEEP_BYTES
from rath.backend.guest.files import encoded, raw_path
from rath.backend.guest.frames import ProtocolError, number
from rath.backend.guest.inflight import Reply
from rath.backend.host.paths import Refused
from rath.utils.decoding import decode_subprocess_output

__all__ = [
    "Ran",
    "checked_env",
    "limit_of",
    "ran",
    "run_command",
    "run_script",
    "spawn_fields",
    "timed_out",
    "timeout_field",
]

_FOREVER_S = 1e8  # years: no limit, and no number that a clock cannot take
_VALUE_PIPE = "3"
_FLAGS = frozenset("tkoxs")


class Ran(NamedTuple):
    """How a command ended, or code in an interpreter; ``exit_code`` is ``None`` while that lives on."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    value: bytes
    elapsed_s: float
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    flags: str


def ran(reply: Reply) -> Ran:
    """What a guest's answer to ``spawn`` or ``cell`` says.

    Raises:
        ProtocolError: it makes no sense.
    """
    if len(reply.fields) != 8:
        raise ProtocolError(f"{len(reply.fields)} fields about the end of a command")
    exit_field, elapsed, out_total, out_head, err_total, err_head, value_total, flags = reply.fields
    return Ran(
        exit_code=number(exit_field, minimum=-64, maximum=255) if exit_field else None,
        stdout=_output(reply.out, number(out_total), number(out_head, maximum=len(reply.out))),
        stderr=_output(reply.err, number(err_total), number(err_head, maximum=len(reply.err))),
        value=_output(reply.value, number(value_total), len(reply.value)),
        elapsed_s=number(elapsed) / 1e6,
        stdout_bytes=number(out_total),
        stderr_bytes=number(err_total),
        truncated=number(out_total) > len(reply.out) or number(err_total) > len(reply.err),
        flags="".join(flag for flag in flags.decode("ascii", "replace") if flag in _FLAGS),
    )


def _output(data: bytes, total: int, head: int) -> bytes:
    if total < len(data):
        raise ProtocolError(f"{len(data):,} bytes of an output of {total:,}")
    return data if total == len(data) else composed(data[:head], data[head:], total)


def limit_of(timeout: float | None, default_s: float | None) -> float | None:
    """The time limit of a call in seconds, checked."""
    timeout_s = default_s if timeout is None else timeout
    if timeout_s is not None and not timeout_s > 0:
        raise Refused("invalid_tool_arguments", f"timeout={timeout_s!r}: a call needs more than 0 seconds")
    return None if timeout_s is None or timeout_s > _FOREVER_S else timeout_s


def timeout_field(timeout_s: float | None) -> bytes:
    """A time limit as the guest takes it."""
    return b"" if timeout_s is None else b"%d" % max(1, round(timeout_s * 1000))


def timed_out(timeout_s: float | None, ended: Ran, lost: str = "") -> ToolExecutionFailure:
    """The failure of a call that was ended for its time. ``lost``: what else is gone with it."""
    return ToolExecutionFailure(
        "timeout",
        f"timed out after {timeout_s or 0:g} s; the command and everything it started were killed{lost}. "
        "The output so far is kept",
        output_so_far(ended.stdout, ended.stderr),
    )


def checked_env(env: Mapping[str, str]) -> dict[str, str]:
    """``env``, if a process can have it.

    Raises:
        Refused: it cannot.
    """
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise Refused("invalid_tool_arguments", f"env: {name!r}={value!r}: names and values are strings")
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise Refused("invalid_tool_arguments", f"env: {name!r} cannot be a variable, or its value has a NUL character")
        try:
            os.fsencode(name + value)
        except UnicodeEncodeError:
            message = f"env: {name!r} or its value holds half of a surrogate pair, which no process can have"
            raise Refused("invalid_tool_arguments", message) from None
    return dict(env)


def spawn_fields(
    argv: Sequence[str],
    *,
    flags: str = "",
    timeout_s: float | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
) -> list[bytes]:
    """The fields of a ``spawn``.

    Raises:
        Refused: no process can be started so.
    """
    arguments = _arguments(argv)
    variables = [os.fsencode(f"{name}={value}") for name, value in checked_env(env or {}).items()]
    head = [timeout_field(timeout_s), raw_path(cwd or "."), b"", flags.encode(), b"%d" % len(arguments)]
    return [*head, *arguments, *variables]


def _arguments(argv: Sequence[str]) -> list[bytes]:
    if not argv:
        raise Refused("invalid_tool_arguments", "cmd is empty: give a command line, or a program and its arguments")
    try:
        found = [os.fsencode(part) for part in argv]
    except (TypeError, UnicodeEncodeError) as error:
        raise Refused("invalid_tool_arguments", f"the command cannot be started: {error}") from None
    if any(b"\0" in part for part in found):
        raise Refused("invalid_tool_arguments", "the command cannot be started: an argument holds a NUL character")
    return found


async def run_command(channel: Channel, call: BackendToolCommandRun, default_s: float | None) -> ToolResult:
    """Run a command."""
    argv = ["/bin/sh", "-c", call.cmd] if isinstance(call.cmd, str) else list(call.cmd)
    stdin = None if call.stdin is None else encoded(call.stdin, "stdin")
    timeout_s = limit_of(call.timeout, default_s)
    fields = spawn_fields(argv, flags="" if stdin is None else "i", timeout_s=timeout_s, cwd=call.cwd, env=call.env)
    ended = await _run(channel, fields, timeout_s, stdin, 0)
    if "t" in ended.flags:
        return timed_out(timeout_s, ended)
    return CommandResult(
        exit_code=_code(ended),
        stdout=ended.stdout,
        stderr=ended.stderr,
        elapsed_ms=ended.elapsed_s * 1000.0,
        stdout_bytes=ended.stdout_bytes,
        stderr_bytes=ended.stderr_bytes,
        truncated=ended.truncated,
        oom_killed="o" in ended.flags,
    )


async def run_script(
    channel: Channel, call: BackendToolCodeRun, language: str, python: str, default_s: float | None
) -> ToolResult:
    """Run code in a fresh process."""
    command = command_for(language, call.code, python)
    if command is None:
        return ToolExecutionFailure(
            "unsupported_tool", f"the sandbox runs python and sh, not {call.language!r}. Use a command instead"
        )
    argv, stdin, has_value = command
    timeout_s = limit_of(call.timeout, default_s)
    flags = ("" if stdin is None else "i") + ("v" if has_value else "")
    fields = spawn_fields([*argv, _VALUE_PIPE] if has_value else argv, flags=flags, timeout_s=timeout_s)
    ended = await _run(channel, fields, timeout_s, stdin, KEEP_BYTES if has_value else 0)
    if "t" in ended.flags:
        return timed_out(timeout_s, ended)
    error = None
    if ended.exit_code != 0:
        error = decode_subprocess_output(ended.stderr).strip() or f"exit code {_code(ended)}"
    if "o" in ended.flags:
        error = f"{error}\nThe sandbox ran out of memory"
    text = decode_subprocess_output(ended.value) if ended.value else None
    return CodeResult(text, ended.stdout, ended.stderr, error)


async def _run(
    channel: Channel, fields: Sequence[bytes], timeout_s: float | None, stdin: bytes | None, value_bytes: int
) -> Ran:
    return await channel.ask(
        ran,
        "spawn",
        *fields,
        source=stdin,
        timeout_s=timeout_s,
        slow=True,
        keep_bytes=KEEP_BYTES,
        value_bytes=value_bytes,
    )


def _code(ended: Ran) -> int:
    return exit_status(-9 if ended.exit_code is None else ended.exit_code)
