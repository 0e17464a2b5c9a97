"""``rath sandbox``: what is open, what dead processes left, what a sandbox was asked, and a shell in it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rath.backend import owner
from rath.backend.bwrap import sweep as bwrap_sweep
from rath.backend.docker import labels, sweep, where
from rath.backend.docker.engine import engine
from rath.backend.docker.network import ROLE
from rath.backend.host.own import Leftover
from rath.backend.owner import SandboxRecord
from rath.cli.console import Screen, Trouble, err, out
from rath.display.text import count, duration, fit, one_line
from rath.errors import SandboxError

__all__ = ["Open", "find", "known", "list_sandboxes", "reap", "show_calls"]

_ID_PART = re.compile(r"[0-9a-f]{1,64}")
_LOOK_S = 0.3
_STATES = {
    "running": "green", "warm": "cyan", "stopped": "dim", "orphaned": "bold red", "not judgeable": "yellow",
    "unknown": "yellow",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Open:
    """A sandbox that is open, or was left.

    Attributes:
        state: ``running``; ``warm``: waits in a pool; ``stopped``: its container is gone, and its owner has not let go of
            it yet; ``orphaned``: its owner is dead; ``not judgeable``: its owner is of another machine or user;
            ``unknown``: its engine does not answer.
        container: the engine's whole id; ``None`` without one.
        owner_alive: ``None`` if nobody here can tell.
        last_call_s: how long ago its last call ended; ``None`` without one.
    """

    id: str
    backend: str
    state: str
    image: str | None
    container: str | None
    owner: str
    owner_pid: int | None
    owner_alive: bool | None
    age_s: float
    last_call: str | None
    last_call_s: float | None
    workspace: str | None
    layer: str | None
    uid: int | None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the engine has: containers of sandboxes by the sandbox's id, everything else; or why it cannot be asked."""

    containers: Mapping[str, Mapping[str, Any]]
    others: tuple[sweep.Found, ...]
    problem: str = ""


def _look() -> _Seen:
    if not where.answers():
        return _Seen({}, (), where.remedy())
    try:
        rows = engine().ask_blocking(
            "list its containers", lambda client: client.containers(all=True, filters={"label": labels.OWNER})
        )
        found = sweep.everything(engine())
    except SandboxError as error:
        return _Seen({}, (), str(error))
    sandboxes = {row["Labels"].get(labels.SANDBOX, row["Id"][:16]): row for row in rows if ROLE not in row["Labels"]}
    shown = {row["Id"] for row in sandboxes.values()}
    return _Seen(sandboxes, tuple(one for one in found if one.id not in shown))


def known() -> tuple[list[Open], _Seen]:
    """Every sandbox of this user that is known of, the oldest first, and what the engine said."""
    seen = _look()
    records = {record.id: record for record in owner.sandboxes()}
    found = [_from_record(record, seen) for record in records.values()]
    found += [_from_container(name, row) for name, row in seen.containers.items() if name not in records]
    return sorted(found, key=lambda one: -one.age_s), seen


def _from_record(record: SandboxRecord, seen: _Seen) -> Open:
    row = seen.containers.get(record.id)
    living = owner.alive(record.owner)
    in_engine = record.backend == "docker"
    if living is not True:
        state = "orphaned" if living is False else "not judgeable"
    elif in_engine and seen.problem:
        state = "unknown"
    elif in_engine and (row is None or row.get("State") != "running"):
        state = "stopped"
    else:
        state = "running"
    last = owner.calls(record.id, last=1)
    call, ended = (_call(last[-1]), _number(last[-1].get("time"))) if last else (None, None)
    return Open(
        record.id, record.backend, state, record.image, None if row is None else str(row["Id"]), record.owner, record.pid,
        living, max(0.0, time.time() - record.created), call, None if ended is None else max(0.0, time.time() - ended),
        record.workspace, record.layer, record.uid,
    )  # fmt: skip


def _from_container(name: str, row: Mapping[str, Any]) -> Open:
    """A container without a record: of a pool, or left after its record."""
    said = row["Labels"]
    living, _ = labels.judge(said)
    uid = said.get(labels.UID, "")
    state = {True: "warm", False: "orphaned", None: "not judgeable"}[living]
    about = owner.owners().get(said.get(labels.OWNER, ""), {})
    return Open(
        name, "docker", state, row.get("Image"), str(row["Id"]), said.get(labels.OWNER, ""), about.get("pid"), living,
        max(0.0, time.time() - float(row.get("Created") or 0)), None, None, None, None, int(uid) if uid.isdigit() else None,
    )  # fmt: skip


def find(name: str) -> tuple[Open, _Seen]:
    """The sandbox that an id, or the beginning of one (of the sandbox's or its container's), means.

    Raises:
        Trouble: none, or more than one.
    """
    if not _ID_PART.fullmatch(name):
        raise Trouble(f"{name!r:.100} is neither a sandbox's id nor the beginning of one")
    all_of_them, seen = known()
    found = [one for one in all_of_them if one.id.startswith(name) or (one.container or "").startswith(name)]
    if not found:
        why = f" ({seen.problem})" if seen.problem else ""
        raise Trouble(f"no open sandbox has an id that begins with {name}: see `rath sandbox ps`{why}", code=1)
    if len(found) > 1:
        names = ", ".join(one.id for one in found[:5]) + (", …" if len(found) > 5 else "")
        raise Trouble(f"{len(found)} sandboxes begin with {name}: {names}. Give more of the id")
    return found[0], seen


# -- ps ---------------------------------------------------------------------------------------------------------------


def list_sandboxes(*, as_json: bool) -> int:
    """Print this user's sandboxes, and what dead owners left beside them."""
    found, seen = known()
    left = [one for one in seen.others if labels.judge(one.labels)[0] is False]
    if as_json:
        out().json(
            {
                "engine": {"answers": not seen.problem, "problem": seen.problem or None},
                "sandboxes": [asdict(one) for one in found],
                "leftovers": [_found_json(one) for one in left],
            }
        )
        return 0
    screen = out()
    if found:
        _table(screen, found)
    else:
        screen.line("no open sandboxes")
    if left or any(one.state == "orphaned" for one in found):
        number = len(left) + sum(one.state == "orphaned" for one in found)
        screen.line((f"{count(number, 'thing')} of dead owners: `rath sandbox reap` removes them", "yellow"))
    if seen.problem:
        err().prose((f"the Docker Engine was not asked: {seen.problem}", "yellow"))
    return 0


def _table(screen: Screen, found: list[Open]) -> None:
    head = f"{'id':16}  {'backend':7}  {'state':13}  {'age':>10}  {'owner':>8}  {'image':24}  last call"
    screen.line((head, "bold"))
    for one in found:
        pid = f"{one.owner_pid or '?'}{'†' if one.owner_alive is False else ''}"
        call = "-" if one.last_call_s is None else f"{duration(one.last_call_s)} ago: {one_line(one.last_call or '', 60)}"
        screen.line(
            f"{one.id:16}  {one.backend:7}  ",
            (f"{one.state:13}", _STATES[one.state]),
            f"  {duration(one.age_s):>10}  {pid:>8}  {fit(one.image or '', 24):24}  ",
            (call, "dim"),
        )
        if one.workspace or one.layer:
            screen.line((f"{'':18}{one.workspace or ''}{f' layer {one.layer}' if one.layer else ''}", "dim"))


# -- reap -------------------------------------------------------------------------------------------------------------


def reap(*, dry_run: bool, as_json: bool) -> int:
    """Remove what dead owners left, and say what went and what stays; 1 if something could not be removed.

    An engine that does not answer keeps only what is its own from being removed.
    """
    problem, report = "", sweep.Report()
    directories = bwrap_sweep.sweep(dry_run=dry_run)
    if where.answers():
        try:
            report = sweep.sweep_blocking(engine(), dry_run)
        except SandboxError as error:
            problem = str(error)
    else:
        problem = where.remedy()
    code = 1 if problem or report.failed or any(left.fate == "failed" for left in directories) else 0
    if as_json:
        groups = {name: [_found_json(one) for one in getattr(report, name)] for name in ("removed", "kept", "failed")}
        found = [left._asdict() for left in directories]
        out().json({"dry_run": dry_run, "problem": problem or None, **groups, "owners": report.owners, "directories": found})
        return code
    screen = out()
    _show_directories(screen, directories, dry_run)
    if problem:
        raise Trouble(f"the Docker Engine cannot be asked, so nothing of it was removed: {problem}", code=1)
    _show_found(screen, "would remove" if dry_run else "removed", report.removed, "green")
    _show_found(screen, "kept", report.kept, "dim")
    _show_found(screen, "could not remove", report.failed, "bold red")
    if not report.removed and not report.failed and not directories:
        screen.line("nothing was left behind")
    return code


def _show_directories(screen: Screen, found: list[Leftover], dry_run: bool) -> None:
    shown = {"removed": ("would remove" if dry_run else "removed", "green"), "failed": ("could not remove", "bold red")}
    for left in found:
        screen.line(shown.get(left.fate, (left.fate, "dim")), f" directory {left.path}: {left.why}")


def _show_found(screen: Screen, what: str, found: list[sweep.Found], style: str) -> None:
    for one in found:
        screen.line((what, style), f" {one.kind} {one.id[:12]} of sandbox {one.sandbox or '?'}: {one_line(one.why, 200)}")


def _found_json(one: sweep.Found) -> dict[str, str]:
    why = one.why or labels.judge(one.labels)[1]
    return {"kind": one.kind, "id": one.id, "sandbox": one.sandbox, "owner": one.owner, "why": why}


# -- logs -------------------------------------------------------------------------------------------------------------


def show_calls(name: str, *, follow: bool, last: int) -> int:
    """Print the calls of a sandbox, oldest first; with ``follow``, go on until it closes."""
    one, _ = find(name)
    seen = owner.calls(one.id, last=last or 1_000_000)
    screen = out()
    for call in seen:
        _show_call(screen, call)
    if not seen and not follow:
        screen.line("no calls yet" if one.state == "running" else "no calls are known of it")
    while follow and any(record.id == one.id for record in owner.sandboxes()):
        time.sleep(_LOOK_S)
        seen = _show_new(screen, seen, owner.calls(one.id, last=1_000_000))
    return 0


def _show_new(screen: Screen, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The file is cut in half when it is long, so that positions in it mean nothing.
    begin = 0
    if before and before[-1] in now:
        begin = len(now) - now[::-1].index(before[-1])
    for call in now[begin:]:
        _show_call(screen, call)
    return now or before


def _show_call(screen: Screen, call: Mapping[str, Any]) -> None:
    ended, took, code = _number(call.get("time")), _number(call.get("ms")), call.get("exit")
    when = "?" if ended is None else datetime.fromtimestamp(ended).strftime("%H:%M:%S")
    mark = ("·", "dim") if code is None else ("✓", "green") if code == 0 else (f"✗ {code}", "bold red")
    screen.line((f"{when} ", "dim"), mark, f" {_call(call)}", (f"  {duration((took or 0) / 1000)}", "dim"))


def _call(call: Mapping[str, Any]) -> str:
    kind = one_line(str(call.get("kind", "")), 40).removeprefix("BackendTool")
    return f"{kind} {one_line(str(call.get('text', '')), 200)}".strip()


def _number(value: object) -> float | None:
    # From a file that another process may have cut while it was written.
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e11 else None
