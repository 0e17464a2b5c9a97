"""The commands and their options. Each only checks what can be checked here and hands over to its module."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import rath
from rath import cli
from rath.backend import owner
from rath.cli import signals
from rath.cli.app_sessions import JsonFlag, session_ids, sessions_app
from rath.cli.console import Trouble, err, log_to_stderr, out, prepare_streams, settle_streams
from rath.core.redact import redact_text
from rath.errors import RathError, UsageError

__all__ = ["app", "run_app"]



class _Commands(TyperGroup):
    """Takes an interruption before typer does, whose answer is 130 whatever the signal was, and not a word."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return _interrupted()


app = typer.Typer(
    name="rath",
    cls=_Commands,
    help="Lazy, branching agent sessions with sandboxed tools. `rath demo` shows it at work: no key, no network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(sessions_app)
sandbox_app = typer.Typer(
    name="sandbox", help="Sandboxes: what is open, and what was left behind.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(sandbox_app)

_PIPE_BROKE = 141


def _print_version(wanted: bool) -> None:
    if wanted:
        out().line(f"rath {rath.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and more of what rath logs.")] = False,
) -> None:
    # `--debug` is taken from anywhere in the line before it comes here; it stands in the signature for the help.
    del version, debug


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="What the agent is to do.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="openai:NAME, anthropic:NAME or scripted:FILE.json; else RATH_MODEL, OPENAI_MODEL or ANTHROPIC_MODEL.",
            show_default=False,
        ),
    ] = None,
    workspace: Annotated[
        Path, typer.Option(help="The agent's workspace, used in place; with --branches each gets a copy.")
    ] = Path("."),
    backend: Annotated[
        str | None,
        typer.Option(
            help="Where tools run: docker, bwrap, auto (the first of these that works), or local: this machine itself, "
            "without isolation.",
            show_default=False,
        ),
    ] = None,
    max_rounds: Annotated[int, typer.Option(min=1, help="Stop after so many rounds of tool calls.")] = 64,
    persist: Annotated[bool, typer.Option(help="Write a session log as the run goes.")] = True,
    branches: Annotated[int, typer.Option(min=1, max=64, help="Run so many copies of the task, overlapping.")] = 1,
    as_json: JsonFlag = False,
) -> int:
    """Let an agent work on a task in a workspace, and watch it."""
    options = cli.run.RunOptions(
        task=task,
        model=model,
        workspace=workspace,
        backend=backend,
        max_rounds=max_rounds,
        persist=persist,
        branches=branches,
        as_json=as_json,
    )
    return int(cli.run.run_task(options))


@app.command()
def demo(
    as_json: JsonFlag = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="Put page, patch and project here (default: .openrath/demo/<time>).", show_default=False),
    ] = None,
    speed: Annotated[float, typer.Option(min=0.1, max=1000, help="How much faster the scripted models answer.")] = 1.0,
    backend: Annotated[str, typer.Option(help="Where tools run: docker, bwrap, auto or local.")] = "local",
) -> int:
    """Watch three scripted agents fix a real failing test in overlapping branches. About five seconds."""
    return int(cli.demo.run_demo(keep=keep, speed=speed, json=as_json, backend=backend))


@app.command()
def doctor(as_json: JsonFlag = False) -> int:
    """Say what works here, and how to mend what does not."""
    return int(cli.doctor.run_doctor(as_json=as_json))


@app.command()
def graph(
    sessions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...",
            help="Only these sessions, what they descend from, and what descends from them.",
            show_default=False,
            autocompletion=session_ids,
        ),
    ] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="The logs, or the `.openrath` that has them.")] = None,
    status: Annotated[list[str] | None, typer.Option(help="Only sessions with this status.", show_default=False)] = None,
    operator: Annotated[list[str] | None, typer.Option(help="Only sessions that this made.", show_default=False)] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only runs that asked this model.", show_default=False)] = None,
    since: Annotated[str | None, typer.Option(help="Only what was made at this time (ISO 8601) or later.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with transcripts, to search and to click.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a drawing.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write GraphML.")] = None,
    otlp: Annotated[Path | None, typer.Option(help="Write OpenTelemetry spans as OTLP/JSON.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Write a JSON object a session.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write the tables into a directory.")] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="Print a Graphviz digraph.")] = False,
    all_lines: Annotated[bool, typer.Option("--all", help="Every line, however many.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """How the logged sessions descend from each other: a tree of branches with status, cost and time; a page; data."""
    forms = [name for name, wanted in (("mermaid", mermaid), ("dot", dot), ("json", as_json)) if wanted]
    if len(forms) > 1:
        raise Trouble(f"print one form at a time, not --{' and --'.join(forms)}")
    conditions = {"status": status, "operator": operator, "model": model, "since": since}
    files = {"html": html, "svg": svg, "graphml": graphml, "otlp": otlp, "jsonl": jsonl, "parquet": parquet}
    request = cli.graph.Request(
        directory=directory,
        sessions=sessions or (),
        conditions={name: value for name, value in conditions.items() if value},
        files={name: path for name, path in files.items() if path is not None},
        form=forms[0] if forms else None,
        all_lines=all_lines,
    )
    return int(cli.graph.show_graph(request))


def _sandbox_ids(incomplete: str) -> list[str]:
    # Records only: at the tab key nobody waits for an engine.
    try:
        return [record.id for record in owner.sandboxes() if record.id.startswith(incomplete)]
    except (RathError, OSError):
        return []


SandboxId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A sandbox's id or its container's, or the beginning of one.",
        show_default=False,
        autocompletion=_sandbox_ids,
    ),
]


@sandbox_app.command("ps")
def list_sandboxes(as_json: JsonFlag = False) -> int:
    """This user's open sandboxes, and whether their owners live."""
    return int(cli.sandbox.list_sandboxes(as_json=as_json))


@sandbox_app.command("reap")
def reap_sandboxes(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be removed.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """Remove what dead processes left in the Docker Engine. What belongs to a living one, or to others, is kept."""
    return int(cli.sandbox.reap(dry_run=dry_run, as_json=as_json))


@sandbox_app.command("logs")
def show_sandbox_calls(
    sandbox: SandboxId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox closes.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="At most so many; 0 for all.")] = 100,
) -> int:
    """The calls of an open sandbox: what was run in it, how it ended, how long it took."""
    return int(cli.sandbox.show_calls(sandbox, follow=follow, last=last))


@sandbox_app.command("shell")
def open_sandbox_shell(sandbox: SandboxId) -> int:
    """A shell in an open sandbox, as the user that its commands run as."""
    return int(cli.sandbox_shell.open_shell(sandbox))


# -- errors and exit codes --------------------------------------------------------------------------------------------


def run_app(arguments: Sequence[str]) -> int:
    """Run a command line; see :func:`rath.cli.main.main` for the exit codes."""
    prepare_streams()
    arguments, debug = _without_debug(arguments)
    streams = sys.stdout, sys.stderr
    try:
        with signals.like_ctrl_c(), log_to_stderr(logging.INFO if debug else logging.WARNING):
            return _run_app(arguments, debug)
    except OSError:  # not even the error could be said: the terminal is gone
        return 1
    finally:
        sys.stdout, sys.stderr = streams  # click wraps them when a pipe breaks
        settle_streams()


def _run_app(arguments: Sequence[str], debug: bool) -> int:
    try:
        code = app(list(arguments), prog_name="rath", standalone_mode=False)
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return _PIPE_BROKE
    except SystemExit as leaving:
        # Click makes one of a broken pipe, e.g. of `| head`, and says 1.
        if isinstance(leaving.__context__, BrokenPipeError):
            return _PIPE_BROKE
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception as error:
        return _explain(error, debug)
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    with contextlib.suppress(OSError):  # after SIGHUP there may be nobody to tell
        err().line("interrupted")
    return signals.exit_code()


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    kept = [argument for argument in given[:end] if argument != "--debug"]
    return kept + given[end:], len(kept) < end


def _explain(error: Exception, debug: bool) -> int:
    if debug:
        err().line(redact_text("".join(traceback.format_exception(error))))
    # Typer's errors of usage, and those of the click that it uses or brings along, have this in common.
    usage: Any = error
    if hasattr(usage, "format_message") and hasattr(usage, "exit_code"):
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its message is the help
            err().line(usage.format_message())
            return 2
        command = getattr(getattr(usage, "ctx", None), "command_path", "rath")
        _say(usage.format_message())
        err().line((f"See `{command} --help`.", "dim"))
        return 2
    if isinstance(error, Trouble):
        _say(str(error))
        return error.code
    if isinstance(error, RathError):
        _say(str(error))
        return 2 if isinstance(error, UsageError) else 1
    if isinstance(error, OSError):
        _say(f"{error}")
        return 1
    _say(f"{type(error).__name__}: {error}. This looks like a defect of rath: `--debug` shows where")
    return 1


def _say(message: str) -> None:
    err().line(("error: ", "bold red"), " ".join(redact_text(message).split()))
