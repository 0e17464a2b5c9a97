"""What the tests of the lineage graph share: programs of real sessions, and the rows that they should have."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rath.llm.scripted import ScriptedClient
from rath.session.compress import run_session_compress
from rath.session.loop import run_session_loop
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session

__all__ = ["answer", "compressed", "family", "home_at"]


@contextmanager
def home_at(directory: Path) -> Iterator[Path]:
    """A data directory for a block, for tests that need several."""
    before = os.environ.get("OPENRATH_HOME")
    os.environ["OPENRATH_HOME"] = str(directory)
    try:
        yield directory
    finally:
        if before is None:
            del os.environ["OPENRATH_HOME"]
        else:
            os.environ["OPENRATH_HOME"] = before


def _provider(text: str, tokens: int, model: str | None, latency_s: float):
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
    client = ScriptedClient([{"text": text, "usage": usage}], latency_s=latency_s)
    return dataclasses.replace(client.as_provider(), model=model)


def answer(
    session: Session,
    *,
    text: str = "Done.",
    tokens: int = 10,
    model: str | None = "model-a",
    persist: bool = False,
    latency_s: float = 0.0,
    agent: Session | None = None,
    persist_path: Path | None = None,
) -> Session:
    """A loop of one reply, which uses ``tokens`` + 1 tokens."""
    return run_session_loop(
        session,
        create_system_session("You answer.") if agent is None else agent,
        agent_provider=_provider(text, tokens, model, latency_s),
        persist=persist,
        persist_path=persist_path,
    )


def compressed(session: Session, *, text: str = "In short.", tokens: int = 10, persist: bool = False) -> Session:
    agent = create_system_session("You summarise.")
    return run_session_compress(
        session, agent, agent_provider=_provider(text, tokens, "model-a", 0.0), persist=persist
    )


def family(**how: object) -> dict[str, Session]:
    """A question, answered in two branches, merged, and taken further."""
    task = create_user_session("Go.")
    left, right = task.fork(), task.user("And quickly.")
    a, b = answer(left, tokens=10, **how), answer(right, tokens=20, **how)
    merged = a.merge(b)
    end = answer(merged, tokens=40, **how)
    end.synchronize(20)
    return {"task": task, "left": left, "right": right, "a": a, "b": b, "merged": merged, "end": end}
