"""The sandbox's own Python: one process that keeps its state from call to call, as long as nothing ends it."""

from __future__ import annotations

import asyncio
import functools
from importlib import resources

from rath.backend.answers import exit_status
from rath.backend.calls import BackendToolCodeRun, CodeResult, ToolExecutionFailure, ToolResult
from rath.backend.guest.channel import Channel
from rath.backend.guest.commands import Ran, limit_of, ran, spawn_fields, timed_out, timeout_field
from rath.backend.guest.config import KEEP_BYTES
from rath.backend.guest.frames import ProtocolError, unpack
from rath.backend.guest.inflight import Call
from rath.backend.host.paths import Refused
from rath.utils.decoding import decode_subprocess_output

__all__ = ["Interpreter"]

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""The value, the traceback and the figures of one call."""
_END_S = 1.0
_STATE_GONE = ", and with the interpreter the state of earlier calls is gone"


@functools.cache
def _program() -> str:
    """The interpreter's source. Read and not imported: it runs inside only."""
    return resources.files("rath.backend.guest").joinpath("repl.py").read_text("utf-8")


class Interpreter:
    """One interpreter of one sandbox, started when first used and again after its end. Calls run one after the other."""

    def __init__(self, channel: Channel, python: str) -> None:
        self._channel = channel
        self._python = python
        self._turn = asyncio.Lock()
        self._process: Call | None = None
        self._has_run = False

    async def run(self, call: BackendToolCodeRun, default_s: float | None) -> ToolResult:
        """Run code in it. ``CodeResult.restarted`` says whether the state of earlier calls is gone.

        Raises:
            Refused: it cannot be started.
        """
        timeout_s = limit_of(call.timeout, default_s)
        source = call.code.encode("utf-8", "surrogatepass")
        async with self._turn:
            restarted = self._start()
            try:
                ended = await self._cell(source, timeout_s)
            except Refused as refused:
                if refused.kind != "os_error" or not await self._has_ended():
                    raise
                # It ended before it was given the code, so nothing of that has run. Or it never started: then this raises.
                restarted = self._start()
                ended = await self._cell(source, timeout_s)
            self._has_run = True
        if "t" in ended.flags:
            return timed_out(timeout_s, ended, _STATE_GONE)
        if ended.exit_code is not None or ended.flags:
            return CodeResult(None, ended.stdout, ended.stderr, _death(ended), (), restarted)
        return _result(ended, restarted)

    def _start(self) -> bool:
        """Have one running; returns whether another one ran before it."""
        if self._process is not None and not self._process.done.done():
            return False
        self._process = self._channel.start("spawn", *spawn_fields([self._python, "-u", "-c", _program()], flags="pv"))
        return self._has_run

    async def _has_ended(self) -> bool:
        """Whether it has run and ended.

        Raises:
            Refused: it could not be started.
        """
        assert self._process is not None
        done, _ = await asyncio.wait([self._process.done], timeout=_END_S)
        return bool(done and self._process.done.result())

    async def _cell(self, source: bytes, timeout_s: float | None) -> Ran:
        process = self._process
        assert process is not None
        try:
            ended = await self._channel.ask(
                ran,
                "cell",
                b"%d" % process.id,
                timeout_field(timeout_s),
                b"",
                source=source,
                timeout_s=timeout_s,
                slow=True,
                keep_bytes=KEEP_BYTES,
                value_bytes=_MAX_ANSWER_BYTES,
            )
        except asyncio.CancelledError:
            self._let_go(process)
            raise
        if ended.exit_code is not None or ended.flags:
            self._let_go(process)
        return ended

    def _let_go(self, process: Call) -> None:
        """It has ended, or is to."""
        self._process = None
        self._has_run = True
        self._channel.kill(process)


def _death(ended: Ran) -> str:
    how = "" if ended.exit_code is None else f" with exit code {exit_status(ended.exit_code)}"
    why = " because the sandbox ran out of memory" if "o" in ended.flags else ""
    said = decode_subprocess_output(ended.stderr).strip()
    return f"the interpreter ended{how}{why}{_STATE_GONE}. The next call starts another" + (f"\n{said}" if said else "")


def _result(ended: Ran, restarted: bool) -> ToolResult:
    try:
        text, flags, error, *figures = unpack(ended.value)
    except (ProtocolError, ValueError):  # not the guest's lie: the code shares a process with what answers
        return ToolExecutionFailure("os_error", "the interpreter's answer cannot be read: the code has changed its workings")
    return CodeResult(
        text.decode("utf-8", "replace") if b"v" in flags else None,
        ended.stdout,
        ended.stderr,
        error.decode("utf-8", "replace") if b"e" in flags else None,
        tuple(figures),
        restarted,
    )
