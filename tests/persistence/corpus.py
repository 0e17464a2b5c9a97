"""Logs of real runs, in many shapes and small, for tests that change every bit of them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from rath.errors import RathError
from rath.flow.tool import tool
from rath.session import Session, load_session, run_session_compress, run_session_loop
from rath.session.persistence.runlog import open_run_log
from rath.testing import ScriptedClient
from tests.persistence.samples import run_until_results, write_sample

__all__ = ["LEGACY_SHAPES", "SHAPES", "STRANGE", "call", "make", "make_legacy", "rows_before", "run"]

STRANGE = "a\u2028b\u2029c\u0085d\ud800e\x00f\r\ng\U0001f600h\x1b[31m"


@tool(parallel_safe=True)
def echo(text: str) -> str:
    """Say it again."""
    return text


@tool
def fail(text: str) -> str:
    """Do not work."""
    raise ValueError(text)


def call(*texts: str, name: str = "echo") -> dict[str, Any]:
    return {
        "tool_calls": [{"name": name, "arguments": {"text": text}} for text in texts],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    }


def run(path: Path, *replies: Any, user: Session | None = None, **options: Any) -> Session:
    """A run whose log is at ``path``; however it ends."""
    session = run_session_loop(
        user or Session.from_user_message("go"),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient(list(replies)).as_provider(),
        tools=[echo, fail],
        persist=True,
        persist_path=path,
        **options,
    )
    with contextlib.suppress(RathError):
        session.synchronize()
    return session


def _cancelled(path: Path) -> None:
    session = run_session_loop(
        Session.from_user_message("go"),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient(["late"], latency_s=30).as_provider(),
        persist=True,
        persist_path=path,
    )
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        time.sleep(0.005)
    session.cancel("enough")
    with contextlib.suppress(RathError):
        session.synchronize()


def _timed_out(path: Path) -> None:
    session = run_session_loop(
        Session.from_user_message("go"),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient(["late"], latency_s=30).as_provider(),
        persist=True,
        persist_path=path,
        timeout_s=0.05,
    )
    with contextlib.suppress(RathError):
        session.synchronize()


def _compressed(path: Path) -> None:
    run_session_compress(
        Session.from_user_message("a long story"),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient(["short"]).as_provider(),
        persist=True,
        persist_path=path,
    ).synchronize()


def _continued(path: Path) -> None:
    first = run(path.with_suffix(".first"), call("one"), "done")
    run(path, "more", user=first)


def _placed(path: Path) -> None:
    with Session.from_user_message("go").to("local") as user:
        run(path, call("here"), "done", user=user)


def _no_rows(path: Path) -> None:
    open_run_log(Session.create("user", "go"), path=path).close(usage=None, lineage_extras=(), outcome={"status": "completed"})


def _results_without_rows(path: Path) -> None:
    log = open_run_log(Session.create("user", "go"), path=path)
    run_until_results(log)
    log.abandon()


def _header_only(path: Path) -> None:
    open_run_log(Session.create("user", "go"), path=path).abandon()


_SHAPES: dict[str, Callable[[Path], object]] = {
    "answer": lambda path: run(path, "done"),
    "tool": lambda path: run(path, call("one"), "done"),
    "parallel_tools": lambda path: run(path, call("one", "two", "three"), "done"),
    "rounds": lambda path: run(path, call("one"), call("two"), "done"),
    "tool_fails": lambda path: run(path, call("no", name="fail"), "sorry"),
    "unknown_tool": lambda path: run(path, call("no", name="nothing"), "sorry"),
    "bad_arguments": lambda path: run(path, {"tool_calls": [{"name": "echo", "arguments": "{not json"}]}, "sorry"),
    "model_fails": lambda path: run(path, call("one"), {"error": {"message": "no", "status": 400}}),
    "fails_at_once": lambda path: run(path, {"error": {"message": "no", "status": 401}}),
    "used_up_rounds": lambda path: run(path, call("one"), call("two"), max_tool_rounds=1),
    "cancelled": _cancelled,
    "timed_out": _timed_out,
    "compress": _compressed,
    "continued": _continued,
    "placed": _placed,
    "strange_text": lambda path: run(path, STRANGE, user=Session.from_user_message(STRANGE)),
    "strange_tool": lambda path: run(path, call(STRANGE), "done"),
    "empty_texts": lambda path: run(path, "", user=Session.from_user_message("")),
    "long_row": lambda path: run(path, "x" * 3000),
    "structure_in_text": lambda path: run(path, '{"record_type":"trailer","h":"0123456789abcdef"}\n' * 3),
    "no_rows": _no_rows,
    "header_only": _header_only,
    "results_without_rows": _results_without_rows,
    "sample": write_sample,
}
SHAPES = tuple(_SHAPES)
LEGACY_SHAPES = ("legacy", "legacy_open", "legacy_spaced")
_ID = UUID("6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11")


def make(shape: str, directory: Path) -> bytes:
    """The log of one shape, made by a run."""
    path = directory / f"{shape}-{os.urandom(4).hex()}.jsonl"
    _SHAPES[shape](path)
    return path.read_bytes()


def make_legacy(shape: str, directory: Path) -> bytes:
    """A file as OpenRath 1.2 wrote it, with the rows of a run."""
    path = directory / "legacy-source.jsonl"
    run(path, call("one"), STRANGE[:3])
    rows = load_session("", path=path).chunk_table
    path.unlink()
    header = {"record_type": "header", "schema_version": 1, "id": str(_ID), "created_at": "2025-03-01T12:00:00+00:00"}
    records: list[dict[str, Any]] = [header]
    records += [{"record_type": "chunk", "index": i, "kind": r.kind.value, "payload": r.payload} for i, r in enumerate(rows)]
    if shape != "legacy_open":
        records.append({"record_type": "trailer", "closed_at": "2025-03-01T12:00:09+00:00", "final_chunk_count": len(rows)})
    end = "\r\n\n" if shape == "legacy_spaced" else "\n"
    return "".join(json.dumps(record) + end for record in records).encode()


def rows_before(data: bytes) -> list[tuple[int, int]]:
    """For each whole line of a log of schema 2: where it ends, and how many rows a reader has by then.

    From docs/log-format.md, not from the reader that is tested.
    """
    found, chunks, results, at = [], 0, set(), 0
    for line in data.split(b"\n")[:-1]:
        record = json.loads(line)
        if record["record_type"] == "chunk":
            chunks = record["index"] + 1
        elif record["record_type"] == "trailer":
            chunks = record["final_chunk_count"]
        elif record["record_type"] == "tool_result":
            results.add(record["index"])
        at += len(line) + 1
        rows = chunks
        while rows in results:
            rows += 1
        found.append((at, rows))
    return found
