"""``rath sessions …``: the commands and their options."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from rath import cli
from rath.errors import RathError
from rath.session.persistence.paths import SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX, sessions_dir

__all__ = ["JsonFlag", "session_ids", "sessions_app"]

# What is not named by an id has to be given as a path, and a shell would obey what is in its name.
_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\.")
_EXIT_CODES = (
    "Exit codes: 0, done; 1, it could not be done, there is no such log, or (verify) a log is not complete; 2, wrong usage; "
    "129, 130 and 143, ended by SIGHUP, Ctrl-C and SIGTERM; 141, whoever read the output left. "
    "diff exits as diff(1) does: 1, the sessions differ; 2, they cannot be compared."
)
sessions_app = typer.Typer(
    name="sessions",
    help="Session logs: what ran, and what was said.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
FullFlag = Annotated[bool, typer.Option("--full", help="Do not fold long results; show those that were cut whole.")]


def session_ids(incomplete: str) -> list[str]:
    """The ids in the sessions directory that begin so."""
    # Names only: at the tab key nobody waits for thousands of files to be read.
    try:
        names = os.listdir(sessions_dir())
    except (RathError, OSError):
        return []
    logs = (name for name in names if name.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)))
    return sorted({name[:36].lower() for name in logs if _ID.match(name) and name.lower().startswith(incomplete.lower())})


SessionId = Annotated[
    str,
    typer.Argument(
        metavar="ID|PATH",
        help="An id, the beginning of one, or a log's path.",
        show_default=False,
        autocompletion=session_ids,
    ),
]
OutPath = Annotated[Path, typer.Argument(metavar="OUT", help="The new file. It must not be there yet.", show_default=False)]
OlderThan = Annotated[
    str, typer.Option(help="Created longer ago than this: 30d, 12h, 90m, 2w.", metavar="TIME", show_default=False)
]


@sessions_app.command("list")
def list_sessions(
    as_json: JsonFlag = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="At most so many; 0 for all.")] = 0,
) -> int:
    """The session logs, newest first.

    The verdict is what a log's two ends look like; `verify` reads all of it. "shared": how many of its rows stand in
    the log of another session.
    """
    return int(cli.sessions.list_logs(as_json=as_json, limit=limit))


@sessions_app.command("show")
def show_session(
    session: SessionId,
    as_json: JsonFlag = False,
    full: FullFlag = False,
) -> int:
    """One session: who it is, and its transcript."""
    return int(cli.sessions_show.show_log(session, as_json=as_json, full=full))


@sessions_app.command("tail")
def tail_session(
    session: SessionId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the log is complete, or its writer is gone.")
    ] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="Begin with at most so many rows; 0 for all.")] = 10,
    full: FullFlag = False,
    as_json: JsonFlag = False,
) -> int:
    """The last rows of a session, and with -f those that come, also from another process. With --json, one a line."""
    return int(cli.sessions_tail.tail_log(session, follow=follow, last=last, full=full, as_json=as_json))


@sessions_app.command("diff")
def diff_sessions(
    left: SessionId,
    right: SessionId,
    as_json: JsonFlag = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page to this file instead.", metavar="FILE", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Do not fold long rows; with --json, print rows too.")] = False,
) -> int:
    """How two sessions differ: where they part, and what each did then. Exits with 0 for the same rows, 1 for others."""
    return int(cli.sessions_diff.diff_logs(left, right, as_json=as_json, html=html, full=full))


@sessions_app.command("verify")
def verify_sessions(
    sessions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID|PATH]...",
            help="Ids, the beginnings of some, or logs' paths.",
            show_default=False,
            autocompletion=session_ids,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every log in the sessions directory.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """Check every byte of logs: complete, open, torn or damaged. Exits with 1 if any is not complete."""
    return int(cli.sessions_check.verify_logs(sessions or [], everything=everything, as_json=as_json))


@sessions_app.command("resume")
def resume_session(
    session: SessionId,
    model: Annotated[
        str | None,
        typer.Option(help="Go on with the run: openai:NAME, anthropic:NAME or scripted:FILE.json.", show_default=False),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Where tools run, instead of where they ran: docker, bwrap, auto or local.", show_default=False),
    ] = None,
    max_rounds: Annotated[int, typer.Option(min=1, help="Stop after so many rounds of tool calls.")] = 64,
    as_json: JsonFlag = False,
) -> int:
    """Repair the log of a run that stopped; with --model, go on where it stopped."""
    return int(
        cli.sessions_resume.resume(session, model=model, backend=backend, max_rounds=max_rounds, as_json=as_json)
    )


@sessions_app.command("salvage")
def salvage_session(session: SessionId, out: OutPath, as_json: JsonFlag = False) -> int:
    """Write a new, complete log of what is whole in one that is not. The old one stays as it is."""
    return int(cli.sessions_check.salvage_log(session, out, as_json=as_json))


@sessions_app.command("export")
def export_session(session: SessionId, out: OutPath, as_json: JsonFlag = False) -> int:
    """Copy a log to a file, checked, with the rows that stand in other logs, and the whole texts of cut results."""
    return int(cli.sessions_check.export_log(session, out, as_json=as_json))


@sessions_app.command("prune")
def prune_sessions(
    older_than: OlderThan,
    verdict: Annotated[
        list[str] | None, typer.Option(help="Only logs with this verdict; may be given again.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """Remove old logs, and the blobs that no log mentions.

    A log that is pinned, or being written, stays; so does every log that one which stays has its first rows in.
    """
    return int(cli.sessions_keep.prune(older_than, verdicts=verdict or [], dry_run=dry_run, as_json=as_json))


@sessions_app.command("pin")
def pin_session(session: SessionId, as_json: JsonFlag = False) -> int:
    """Keep a log from being pruned, and those that it has its first rows in."""
    return int(cli.sessions_keep.pin(session, as_json=as_json))


@sessions_app.command("unpin")
def unpin_session(session: SessionId, as_json: JsonFlag = False) -> int:
    """Let a log be pruned again."""
    return int(cli.sessions_keep.unpin(session, as_json=as_json))


@sessions_app.command("du")
def disk_usage(
    older_than: OlderThan = "30d",
    check: Annotated[bool, typer.Option("--check", help="Read every log whole, not only its two ends.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """How much room logs and blobs take, and what `prune` would free."""
    return int(cli.sessions_keep.disk_usage(older_than, check=check, as_json=as_json))
