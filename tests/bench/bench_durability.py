"""What durability and redaction cost: ``python -m tests.bench.bench_durability [directory]``.

Figures are worth only as ratios to their neighbours in the same run. The directory says which disk.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from rath.core.redact import Secrets
from rath.flow.tool import tool
from rath.session import Session, run_session_loop
from rath.session.persistence.writer import Durability
from rath.testing import ScriptedClient
from tests.bench.bench_log import best, rounds

RUNS = 200
LATENCY_S = 0.5


@tool
def say(text: str) -> str:
    """Say it again."""
    return text


def overlapping_s(directory: Path | None, level: Durability = "turn", runs: int = RUNS) -> float:
    """Seconds that so many runs of four completions take together; logged in ``directory`` at ``level``, if there is one."""
    ask = {"tool_calls": [{"name": "say", "arguments": {"text": "x" * 500}}]}
    clients = [ScriptedClient([ask, ask, ask, "done"], latency_s=LATENCY_S).as_provider() for _ in range(runs)]
    user, agent = Session.from_user_message("go"), Session.from_agent_prompt("a")
    start = time.perf_counter()
    outs = [
        run_session_loop(
            user,
            agent,
            agent_provider=client,
            tools=[say],
            persist=False if directory is None else level,
            persist_path=None if directory is None else directory / f"{number}.jsonl",
        )
        for number, client in enumerate(clients)
    ]
    for out in outs:
        out.synchronize()
    return time.perf_counter() - start


def by_durability(parent: Path | None = None, times: int = 5) -> dict[str, float]:
    """Seconds of :func:`overlapping_s` without a log and at each level: interleaved, the best of some."""
    took: dict[str, list[float]] = {}
    for _ in range(times):
        took.setdefault("no log", []).append(overlapping_s(None))
        for level in get_args(Durability):
            with tempfile.TemporaryDirectory(dir=parent) as directory:
                took.setdefault(level, []).append(overlapping_s(Path(directory), level))
    return {level: min(seconds) for level, seconds in took.items()}


def redaction_us(known: int) -> tuple[float, float]:
    """Microseconds to look for ``known`` secrets in a row without any: one of 0.4 kB, one of 2.2 kB."""
    found = Secrets()
    for _ in range(known):
        found.add("sk-" + secrets.token_urlsafe(30))
    rows = [row.raw_payload for row in rounds(200)]
    by_size = [[row for row in rows if len(row) < 1000], [row for row in rows if len(row) >= 1000]]
    small, large = (best(lambda rows=rows: [found.redact_bytes(row) for row in rows], 9) / len(rows) * 1e6 for rows in by_size)
    return small, large


def main() -> None:
    for known in (0, 1, 3, 10, 50):
        small, large = redaction_us(known)
        print(f"redaction, {known:2} secrets, µs a row    0.4 kB {small:5.1f}   2.2 kB {large:5.1f}")
    took = by_durability(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    for level, seconds in took.items():
        print(f"{RUNS} runs, {level:8} s {seconds:6.3f}   beside process {seconds / took['process']:5.2f}")


if __name__ == "__main__":
    main()
