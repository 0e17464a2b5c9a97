"""``rath run``: an agent, or several copies of one, at work on a task."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rath.backend import registry
from rath.backend.types import BackendSandboxSpec, WorkspaceDiff
from rath.cli import signals
from rath.cli.console import Screen, Trouble, err, out, own_command, user_path
from rath.cli.placing import check_backend
from rath.cli.progress import RunWatch, cancel_all, follow, watch_live
from rath.core import events
from rath.core.home import openrath_home
from rath.core.redact import redact_text
from rath.display.diff import diff_counts
from rath.display.text import count, duration
from rath.errors import RathError, UsageError
from rath.flow.agent import Agent
from rath.flow.tool.edit import coding_tools
from rath.llm.provider import Provider
from rath.llm.registry import chat_client_for
from rath.llm.types import RathLLMStreamDelta
from rath.session.persistence.paths import session_file
from rath.session.primitives import create_user_session
from rath.session.session import Session

__all__ = ["PROMPT", "RunOptions", "run_task"]

PROMPT = (
    "You are a capable software engineer. You work in a workspace that you reach only through your tools: read before you "
    "change, make small exact changes, and run the project's own checks to see whether they hold. Paths are relative to "
    "the workspace. When you are done, or cannot go on, say in a few sentences what you did, what you checked and what is "
    "left."
)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line asked for."""

    task: str
    model: str | None
    workspace: Path
    backend: str | None
    max_rounds: int
    persist: bool
    branches: int
    as_json: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One branch when it is over."""

    session: Session
    seen: RunWatch
    diff: WorkspaceDiff | None
    note: str
    log: Path | None
    patch: Path | None = None


def run_task(options: RunOptions) -> int:
    """Run the task, show it, say where everything is. The exit code: 0, 1 (failed), or that of an interruption."""
    if options.backend is not None:
        check_backend(options.backend)
    workspace = _workspace(options.workspace)
    backend = _chosen_backend(options)
    agent, model = _agent(options)
    placed = create_user_session(options.task).to(backend, spec=_spec(backend, workspace, options.branches))
    if backend != "local" and options.branches == 1:
        placed.require_sandbox()  # what cannot be opened is the user's to mend, and not for the model to read about
    screen = out()
    if not options.as_json:
        _announce(screen, options, backend, workspace, model)
    began = time.monotonic()
    if options.branches == 1:
        starts = [placed]
    else:
        starts = [placed.fork(sandbox="copy") for _ in range(options.branches)]
    sessions = [agent(start) for start in starts]
    names = [f"branch {place + 1}" for place in range(options.branches)] if options.branches > 1 else ["run"]
    watches = [RunWatch(name) for name in names]
    interrupted = False
    try:
        if options.branches == 1 and not options.as_json:
            follow(screen, sessions[0], watches[0])
        else:
            watch_live(screen, sessions, watches, quiet=options.as_json)
    except KeyboardInterrupt:
        interrupted = True
        _cancel(sessions)
    except BaseException as error:  # whoever read the output left
        cancel_all(sessions, f"the command ended: {type(error).__name__}")
        raise
    wall_s = time.monotonic() - began
    results = [_result(s, w, options.persist) for s, w in zip(sessions, watches, strict=True)]
    if options.branches > 1 and options.persist and not interrupted:
        results = _keep_patches(results)
    # When a terminal hangs up, there is nobody to report to, and the exit code is what remains.
    with contextlib.suppress(OSError) if interrupted else contextlib.nullcontext():
        if options.as_json:
            screen.json(_as_json(options, backend, workspace, model, results, wall_s))
        else:
            _report(screen, results, workspace, wall_s, interrupted)
    if interrupted:
        return signals.exit_code()
    return 0 if all(result.seen.status == "completed" for result in results) else 1


# -- before -----------------------------------------------------------------------------------------------------------


def _chosen_backend(options: RunOptions) -> str:
    """The backend. Backend and model have no default: name all that is missing at once, and show a line that works."""
    wanted = []
    if options.backend is None:
        names = " or --backend ".join(registry.list_names())
        wanted.append(
            f"say where the agent's tools may run: --backend {names} "
            "(`local` is this machine itself: commands run as you, without isolation; `auto` is docker, else bwrap)"
        )
    if not options.model:
        try:
            Provider.from_env()
        except UsageError:
            wanted.append("say which model: --model openai:NAME or --model anthropic:NAME, or set RATH_MODEL")
    if wanted or options.backend is None:
        task = options.task if len(options.task) <= 60 and options.task.isprintable() else "What to do"
        words = ["run", task, "--backend", options.backend or "local", "--model", options.model or "openai:gpt-5.5"]
        words += [] if options.workspace == Path() else ["--workspace", str(options.workspace)]
        example = f"{own_command()} {shlex.join(words)}"
        key = "" if options.model else " (with OPENAI_API_KEY set)"
        raise Trouble(f"{'; and '.join(wanted)}. For example: {example}{key}")
    return options.backend


def _spec(backend: str, workspace: Path, branches: int) -> BackendSandboxSpec:
    """One run works in the directory itself, whatever the backend; several have copies, which most backends open at once."""
    if backend == "local":
        return BackendSandboxSpec(working_dir=str(workspace))
    return BackendSandboxSpec(workspace=workspace, workspace_mode="bind" if branches == 1 else "copy")


def _workspace(path: Path) -> Path:
    workspace = user_path(path).absolute()
    if not workspace.is_dir():
        raise Trouble(f"--workspace: there is no directory {workspace}")
    return workspace


def _agent(options: RunOptions) -> tuple[Agent, str]:
    provider = Provider(model=options.model) if options.model else Provider.from_env()
    if not provider.model:
        raise Trouble("--model: name a model after the colon, e.g. openai:gpt-5.5")
    client = chat_client_for(provider)  # a missing key is an error now, not in the run
    can_stream = hasattr(client, "open_completion") or hasattr(client, "complete_stream")
    agent = Agent(
        PROMPT,
        provider,
        coding_tools(),
        # Asking for the stream makes even the first answer one: a reader of events may come a moment too late.
        on_event=_discard if can_stream and not options.as_json else None,
        max_tool_rounds=options.max_rounds,
        persist=options.persist,
    )
    return agent, f"{provider.provider_kind or 'openai'}:{provider.model}"


def _discard(_delta: RathLLMStreamDelta) -> None:
    """The events show it."""


def _announce(screen: Screen, options: RunOptions, backend: str, workspace: Path, model: str) -> None:
    screen.line(("model      ", "dim"), model)
    copies = f" ({options.branches} copies of it; itself unchanged)" if options.branches > 1 else " (used in place)"
    screen.line(("workspace  ", "dim"), str(workspace), (copies, "dim"))
    isolation = "this machine itself: commands run as you, without isolation" if backend == "local" else ""
    screen.line(("backend    ", "dim"), backend, (f" ({isolation})" if isolation else "", "yellow"))
    screen.line()


# -- while it runs ----------------------------------------------------------------------------------------------------


def _cancel(sessions: Sequence[Session]) -> None:
    with contextlib.suppress(OSError):
        err().end_line()
        err().line("interrupted: stopping what runs (Ctrl-C again to leave at once)")
    cancel_all(sessions, f"interrupted by {signals.reason()}")


# -- afterwards -------------------------------------------------------------------------------------------------------


def _result(session: Session, seen: RunWatch, persist: bool) -> Result:
    if seen.ended is None and session.done:
        # Ctrl-C ended the watching before the run. Only the terminal event is wanted of the replay.
        for event in session.events(events.RunCancelled):
            seen.see(event)
    error = session.exception()
    if error is not None:
        # The log may have failed after the last event: what the handle says counts.
        seen.status = session.status
        seen.error = redact_text(str(error) or type(error).__name__)
    log = session_file(session.id) if persist else None
    if log is not None and not log.exists():
        log = None
    diff, note = None, ""
    try:
        diff = session.workspace_diff()
    except RathError as trouble:
        note = str(trouble)
    return Result(session, seen, diff, note, log)


def _keep_patches(results: list[Result]) -> list[Result]:
    """The branches' workspaces go with the process: keep what each changed as a patch."""
    directory = openrath_home() / "runs" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
    kept = []
    for place, result in enumerate(results, 1):
        patch = None
        if result.diff:
            patch = directory / f"branch-{place}.patch"
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            patch.write_text(redact_text(result.diff.text), encoding="utf-8", errors="surrogateescape", newline="\n")
        kept.append(Result(result.session, result.seen, result.diff, result.note, result.log, patch))
    return kept


def _report(screen: Screen, results: Sequence[Result], workspace: Path, wall_s: float, interrupted: bool) -> None:
    several = len(results) > 1
    for result in results:
        _report_one(screen, result, several)
    if several:
        total_s = sum(result.seen.seconds for result in results)
        screen.line()
        screen.line(f"{duration(wall_s)} in all; the branches one after the other: {duration(total_s)}")
        if any(result.patch for result in results):
            screen.line((f"to use one: cd {shlex.quote(str(workspace))} && patch -p1 < PATCH", "dim"))
    for result in results:
        seen = result.seen
        if seen.status == "failed":
            err().line(("error: ", "bold red"), f"{seen.name + ': ' if several else ''}{' '.join(seen.error.split())}")
    if interrupted:
        for result in results:
            if result.log is not None:
                err().line(f"interrupted; the log so far: {result.log}")


def _report_one(screen: Screen, result: Result, several: bool) -> None:
    seen = result.seen
    style = {"completed": "green", "failed": "bold red"}.get(seen.status, "yellow")
    screen.line()
    cost = (count(seen.turn, "turn"), count(seen.tools, "tool call"), f"{seen.tokens:,} tokens", duration(seen.seconds))
    head = [(f"{seen.name}  ", "bold")] if several else []
    screen.line(*head, (seen.status, style), (f" · {' · '.join(cost)}", "dim"))
    if several and seen.text:
        screen.prose(seen.text.strip())
    if result.diff is not None:
        _show_diff(screen, result.diff)
    elif result.note:
        screen.line((f"no diff: {result.note}", "dim"))
    for name, path in (("patch", result.patch), ("log  ", result.log)):
        if path is not None:
            screen.line((f"{name}  ", "dim"), str(path))


def _show_diff(screen: Screen, diff: WorkspaceDiff) -> None:
    if not diff:
        screen.line(("the workspace is unchanged", "dim"))
        return
    added, removed = diff_counts(diff.text)
    files = len(diff.added) + len(diff.removed) + len(diff.modified)
    screen.line((f"{count(files, 'file')} changed, +{added} −{removed} lines", "dim"))
    screen.diff(diff.text)


def _as_json(
    options: RunOptions, backend: str, workspace: Path, model: str, results: Sequence[Result], wall_s: float
) -> dict[str, Any]:
    return {
        "task": options.task,
        "model": model,
        "backend": backend,
        "workspace": str(workspace),
        "wall_s": round(wall_s, 3),
        "branches": [_result_json(result) for result in results],
    }


def _result_json(result: Result) -> dict[str, Any]:
    seen, diff = result.seen, result.diff
    return {
        "session_id": str(result.session.id),
        "status": seen.status,
        "error": seen.error or None,
        "text": seen.text,
        "truncated": seen.truncated,
        "turns": seen.turn,
        "tool_calls": seen.tools,
        "total_tokens": seen.tokens,
        "seconds": round(seen.seconds, 3),
        "log": result.log and str(result.log),
        "patch": result.patch and str(result.patch),
        "diff": diff and diff.text,
        "changed": None if diff is None else {n: list(getattr(diff, n)) for n in ("added", "removed", "modified", "binary")},
    }
