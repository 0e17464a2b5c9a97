"""Append, load, share and list, beside what the machine allows: ``python -m tests.bench.bench_log``.

Figures are worth only as ratios to their neighbours in the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from uuid import UUID

from rath.core.events import RowAppended, ToolFinished, ToolStarted, UsageReported
from rath.llm.types import RathLLMTokenUsage, RathLLMToolCallFunction, RathLLMToolCallPart
from rath.session.chunk import ChunkRow, ChunkTable, assistant_turn_chunk, tool_feedback_chunk, user_text_chunk
from rath.session.persistence import SessionWriter, list_persisted_sessions, load_session, open_dir, verify
from rath.session.persistence.runlog import JsonlRunLog, open_run_log
from rath.session.session import Session

_ID = UUID(int=0)
_TEXT = "The build failed in step 3: undefined reference to `frobnicate'. I will look at the linker flags.\n"


def rounds(n: int) -> list[ChunkRow]:
    """The rows of ``n`` tool rounds: a short assistant's turn and a tool result of 2 kB."""
    rows = [user_text_chunk(_TEXT * 10)]
    for i in range(n):
        call = RathLLMToolCallPart(
            f"call_{i:020}", "function", RathLLMToolCallFunction("flow_tool_command_run", json.dumps({"cmd": f"make {i}"}))
        )
        body = json.dumps({"exit_code": 1, "stdout": _TEXT * 18, "stderr": _TEXT * 2, "elapsed_ms": 12.5})
        rows += [
            assistant_turn_chunk(tool_calls=(call,), content=_TEXT * 2),
            tool_feedback_chunk(call.id, "flow_tool_command_run", body),
        ]
    return rows


def write_run(path: Path, n: int) -> int:
    """The log of a run of ``n`` rounds, with all that a run records. Its size in bytes."""
    log = open_run_log(Session.from_user_message("x"), path=path, durability="process")
    rows = rounds(n)
    log.append_row(0, rows[0])
    write_rounds(log, rows, 1, len(rows))
    log.close(usage=RathLLMTokenUsage(1200, 80, 1280), lineage_extras=(), outcome={"status": "completed"})
    return path.stat().st_size


def write_rounds(log: JsonlRunLog, rows: list[ChunkRow], begin: int, end: int) -> None:
    """What a run records of the rounds in ``rows[begin:end]``."""
    usage = RathLLMTokenUsage(1200, 80, 1280)
    for i in range(begin, end, 2):
        payload = rows[i + 1].payload
        name, call_id, body = payload["name"], payload["tool_call_id"], payload["content"]
        log.on_event(UsageReported(_ID, _ID, i, 0.0, usage, "model"))
        log.on_event(RowAppended(_ID, _ID, i, 0.0, i, rows[i]))
        log.on_event(ToolStarted(_ID, _ID, i, 0.0, i, 0, call_id, name, "{}", False))
        log.on_event(ToolFinished(_ID, _ID, i, 0.0, i, 0, call_id, name, True, body, i + 1, 0.1))
        log.on_event(RowAppended(_ID, _ID, i, 0.0, i + 1, rows[i + 1]))


def write_rows(path: Path, rows: list[ChunkRow]) -> int:
    """The log of these rows alone."""
    with SessionWriter(Session.from_user_message("x"), path=path) as writer:
        for index, row in enumerate(rows):
            writer.write_chunk(index, row)
    return path.stat().st_size


def best(run: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of some runs: the one that others disturbed least."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took)


def append_us(directory: Path, n: int = 5000) -> tuple[float, float, float]:
    """Microseconds a row: ours at ``process``, ``json.dumps`` and ``write``, ``write`` alone. Interleaved, medians."""
    rows = rounds(n // 2)[:n]
    ours, plain, bare = [], [], []
    for turn in range(7):
        log = open_run_log(Session.from_user_message("x"), path=directory / f"a{turn}.jsonl", durability="process")
        start = time.perf_counter()
        for index, row in enumerate(rows):
            log.append_row(index, row)
        ours.append(time.perf_counter() - start)
        log.abandon()
        payloads = [(row.kind.value, row.payload) for row in rows]
        fd = os.open(directory / f"b{turn}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        start = time.perf_counter()
        for index, (kind, payload) in enumerate(payloads):
            record = {"record_type": "chunk", "index": index, "kind": kind, "payload": payload}
            os.write(fd, (json.dumps(record, ensure_ascii=False) + "\n").encode())
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        for row in rows:
            os.write(fd, row.encoded)
        bare.append(time.perf_counter() - start)
        os.close(fd)
    ours_us, plain_us, bare_us = (statistics.median(took) / n * 1e6 for took in (ours, plain, bare))
    return ours_us, plain_us, bare_us


def load_mb_s(path: Path) -> tuple[float, float, float]:
    """MB/s: ours with the chain checked, ``json.loads`` of each line, BLAKE2b alone over the lines."""
    size = path.stat().st_size / 1e6
    ours = best(lambda: load_session("", path=path))
    lines = path.read_bytes().splitlines()
    plain = best(lambda: [json.loads(line) for line in lines])
    bare = best(lambda: [blake2b(line, digest_size=8).digest() for line in lines])
    return size / ours, size / plain, size / bare


def write_chain(directory: Path, rows: list[ChunkRow], n: int) -> tuple[int, float]:
    """Logs of ``n`` runs, each of which goes on with the one before by as many rows. Their bytes; seconds to open one."""
    table, size, took = ChunkTable(), 0, []
    part = len(rows) // n
    for i in range(n):
        start = time.perf_counter()
        log = open_run_log(Session.from_user_message("x"), path=directory / f"{i}.jsonl", durability="process", seed=table)
        took.append(time.perf_counter() - start)
        log.abandon()
        log.path.unlink()
        session = Session.from_user_message("x")
        log = open_run_log(session, path=directory / f"{session.id}.jsonl", durability="process", seed=table)
        begins, table = len(table), table.extend(*rows[i * part : (i + 1) * part])
        write_rounds(log, rows, begins, len(table))
        log.close(usage=RathLLMTokenUsage(1200, 80, 1280), lineage_extras=(), outcome={"status": "completed"}, table=table)
        size += log.path.stat().st_size
    return size, statistics.median(took)


def sharing_figures(directory: Path, n: int = 1000) -> tuple[float, float, float, float]:
    """Of a chain of ``n`` runs of two rounds: bytes by those of the rows, ms to open a log with a prefix and one without,
    MB/s of the rows to load the last.
    """
    directory.mkdir()
    rows = rounds(2 * n)[1:]
    size, with_prefix = write_chain(directory, rows, n)
    unique = sum(len(row.encoded) for row in rows)
    alone = []
    for i in range(200):
        start = time.perf_counter()
        log = open_run_log(Session.from_user_message("x"), path=directory / f"alone{i}.jsonl", durability="process")
        alone.append(time.perf_counter() - start)
        log.abandon()
        log.path.unlink()
    last = max(directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    took = best(lambda: load_session("", path=last), 3)
    assert len(load_session("", path=last).chunk_table) == len(rows)
    return size / unique, with_prefix * 1e3, statistics.median(alone) * 1e3, unique / 1e6 / took


def list_seconds(home: Path, n: int = 10_000) -> float:
    """Seconds to list ``n`` logs of the usual size."""
    os.environ["OPENRATH_HOME"] = str(home)
    sessions = home / "sessions"
    sessions.mkdir(parents=True)
    write_run(sessions / "first.jsonl", 5)
    data = (sessions / "first.jsonl").read_bytes()
    for i in range(1, n):
        (sessions / f"{UUID(int=i)}.jsonl").write_bytes(data)
    found = best(lambda: list_persisted_sessions(), 3)
    assert len(list_persisted_sessions()) == n
    return found


def collection_figures(home: Path) -> tuple[float, float, float]:
    """Of the logs that :func:`list_seconds` made: seconds to go through them, MiB of Python's memory, seconds to verify all."""
    logs = open_dir(home / "sessions")
    listed = best(lambda: [entry.verdict for entry in logs], 3)
    tracemalloc.start()
    kept = list(logs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 10_000
    return listed, peak / (1 << 20), best(logs.verify_all, 1)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ours, plain, bare = append_us(directory)
        print(f"append, µs a row        rath {ours:6.1f}   json.dumps + write {plain:6.1f}   write alone {bare:5.1f}")
        for what, write in (("run", lambda p: write_run(p, 10_000)), ("rows", lambda p: write_rows(p, rounds(10_000)))):
            path = directory / f"{what}.jsonl"
            size = write(path)
            ours, plain, bare = load_mb_s(path)
            print(
                f"load {what:4}, {size / 1e6:3.0f} MB, MB/s   rath {ours:6.0f}   json.loads {plain:13.0f}   "
                f"hash alone {bare:6.0f}   verify {size / 1e6 / best(partial(verify, path)):6.0f}"
            )
        ratio, with_prefix, alone, mb_s = sharing_figures(directory / "chain")
        print(f"chain of 1,000 runs     bytes / rows' bytes {ratio:5.2f}   load the last, MB/s of rows {mb_s:5.0f}")
        print(f"open a log, ms          with a prefix {with_prefix:6.3f}   without {alone:6.3f}")
        print(f"list 10,000 logs, s     rath {list_seconds(directory / 'home'):6.2f}")
        listed, mib, verified = collection_figures(directory / "home")
        print(f"open_dir of them, s     {listed:6.2f}   MiB {mib:6.1f}   verify_all, s {verified:6.2f}")


if __name__ == "__main__":
    main()
