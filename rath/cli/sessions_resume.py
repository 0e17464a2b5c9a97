"""``rath sessions resume``: what a run that stopped left behind, made whole; with a model, gone on with."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rath.cli import signals
from rath.cli.console import Screen, Trouble, err, out, own_command
from rath.cli.placing import check_backend
from rath.cli.progress import RunWatch, cancel_all, follow, watch_live
from rath.cli.run import PROMPT
from rath.cli.sessions import find_session_log
from rath.core import events
from rath.core.redact import redact_text
from rath.display.text import count, duration, one_line
from rath.errors import PersistenceError
from rath.flow.tool.edit import coding_tools
from rath.llm.provider import Provider
from rath.llm.registry import chat_client_for
from rath.session.continuing import continue_session_loop
from rath.session.persistence.paths import session_file
from rath.session.persistence.reader import load_session
from rath.session.persistence.resume import Repair, peek_log, repair_log
from rath.session.session import Session

__all__ = ["resume"]


def resume(session: str, *, model: str | None, backend: str | None, max_rounds: int, as_json: bool) -> int:
    """Repair a log, or go on with its run. The exit code: 0, 1 (the run failed), or that of an interruption."""
    path = find_session_log(session)
    if model is None:
        if backend is not None:
            raise Trouble("--backend says where tools run while the run goes on: name its --model, too")
        return _repair(path, as_json)
    if backend is not None:
        check_backend(backend)
    provider = Provider(model=model)
    if not provider.model:
        raise Trouble("--model: name a model after the colon, e.g. openai:gpt-5.5")
    chat_client_for(provider)  # a missing key is an error now, not in the run
    going_on = continue_session_loop(
        path,
        agent_provider=provider,
        tools=coding_tools(),
        agent_session=PROMPT,
        max_tool_rounds=max_rounds,
        backend=backend,
    )
    return _watch(path, going_on, as_json)


# -- repair -----------------------------------------------------------------------------------------------------------


def _repair(path: Path, as_json: bool) -> int:
    done = repair_log(path)
    if as_json:
        out().json(_repair_json(done))
        return 0
    screen = out()
    screen.line(("session  ", "dim"), str(done.session.id))
    screen.line(("log      ", "dim"), str(done.path), (f" ({done.verdict})", "dim"))
    screen.line(("rows     ", "dim"), f"{len(done.session.chunk_table):,}")
    screen.line(("repaired ", "dim"), _repair_text(done))
    for call_id, name in done.interrupted:
        screen.line("    interrupted: ", (one_line(name), "cyan"), (f" {one_line(call_id)}", "dim"))
    if done.verdict != "complete":
        how = f"{own_command()} sessions resume {done.session.id} --model openai:NAME"
        screen.line((f"to go on with the run: {how}", "dim"))
    return 0


def _repair_text(done: Repair) -> str:
    if done.verdict == "complete":
        return "nothing: the log is complete"
    parts = []
    if done.torn_bytes:
        parts.append(f"cut off {count(done.torn_bytes, 'byte')} of a last line that was not whole")
    if done.interrupted:
        parts.append(f"marked {count(len(done.interrupted), 'tool call')} without a result as interrupted")
    return "; ".join(parts) or "nothing: every tool call has its result"


def _repair_json(done: Repair) -> dict[str, Any]:
    return {
        "id": str(done.session.id),
        "path": str(done.path),
        "verdict": done.verdict,
        "torn_bytes": done.torn_bytes,
        "interrupted": [{"call_id": call_id, "name": name} for call_id, name in done.interrupted],
        "rows": len(done.session.chunk_table),
        "digest": done.session.digest.hex(),
    }


# -- going on ---------------------------------------------------------------------------------------------------------


def _watch(path: Path, session: Session, as_json: bool) -> int:
    screen, seen, interrupted = out(), RunWatch("run"), False
    try:
        if as_json:
            watch_live(screen, [session], [seen], quiet=True)
        else:
            screen.line(("session    ", "dim"), str(session.id))
            screen.line()
            follow(screen, session, seen)
    except KeyboardInterrupt:
        interrupted = True
        with contextlib.suppress(OSError):
            err().end_line()
            err().line("interrupted: stopping what runs (Ctrl-C again to leave at once)")
        cancel_all([session], f"interrupted by {signals.reason()}")
    except BaseException as error:  # whoever read the output left
        cancel_all([session], f"the command ended: {type(error).__name__}")
        raise
    _settle(session, seen)
    log = path if _is_log_of(path, session) else session_file(session.id)
    # When a terminal hangs up, there is nobody to report to, and the exit code is what remains.
    with contextlib.suppress(OSError) if interrupted else contextlib.nullcontext():
        if as_json:
            screen.json(_run_json(session, seen, log))
        else:
            _report(screen, seen, log)
    if interrupted:
        return signals.exit_code()
    return 0 if seen.status == "completed" else 1


def _settle(session: Session, seen: RunWatch) -> None:
    if seen.ended is None and session.done:
        # Ctrl-C ended the watching before the run. Only the terminal event is wanted of the replay.
        for event in session.events(events.RunCancelled):
            seen.see(event)
    error = session.exception()
    if error is not None:
        seen.status = session.status
        seen.error = redact_text(str(error) or type(error).__name__)


def _is_log_of(path: Path, session: Session) -> bool:
    return peek_log(path).header.id == session.id


def _report(screen: Screen, seen: RunWatch, log: Path) -> None:
    style = {"completed": "green", "failed": "bold red"}.get(seen.status, "yellow")
    cost = (count(seen.tools, "tool call"), f"{seen.tokens:,} tokens", duration(seen.seconds))
    screen.line()
    screen.line((seen.status, style), (f" · {' · '.join(cost)} since it went on", "dim"))
    screen.line(("log  ", "dim"), str(log))
    if seen.status == "failed":
        err().line(("error: ", "bold red"), " ".join(seen.error.split()))


def _run_json(session: Session, seen: RunWatch, log: Path) -> dict[str, Any]:
    return {
        "session_id": str(session.id),
        "status": seen.status,
        "error": seen.error or None,
        "text": seen.text,
        "truncated": seen.truncated,
        "tool_calls": seen.tools,
        "total_tokens": seen.tokens,
        "seconds": round(seen.seconds, 3),
        "rows": len(session.partial),
        "repaired": _last_resume(log),
        "log": str(log),
    }


def _last_resume(log: Path) -> dict[str, Any] | None:
    """What the log's last ``resume`` record says was repaired; ``None`` if it has none."""
    try:
        records = load_session("", path=log).records
    except PersistenceError:  # why, the run's own error says
        return None
    found = [record for record in records if record["record_type"] == "resume"]
    return found[-1].get("repaired") if found else None
