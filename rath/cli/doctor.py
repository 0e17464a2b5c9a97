"""``rath doctor``: what works here, and how to mend what does not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import rath
from rath import cli
from rath.backend.bwrap import preflight
from rath.backend.docker import where
from rath.backend.host.paths import Confined
from rath.cli.console import out
from rath.core.home import DIRECTORY_NAME, openrath_home
from rath.display.text import duration, one_line
from rath.errors import RathError, SandboxUnavailable
from rath.flow.agent import Agent
from rath.llm.scripted import ScriptedClient
from rath.session.primitives import create_user_session

__all__ = ["Check", "run_checks", "run_doctor"]

_CORE = ("anthropic", "docker", "msgspec", "networkx", "openai", "pydantic")
_COMMAND_LINE = ("rich", "typer")
_LITTLE_SPACE, _NO_SPACE = 1 << 30, 32 << 20
_SELF_TEST_S = 20.0
_MARKS = {"ok": ("✓", "green"), "note": ("·", "yellow"), "bad": ("✗", "bold red")}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``level``: ``ok``, ``note`` (something optional is missing) or ``bad`` (rath cannot work)."""

    name: str
    level: str
    found: str
    remedy: str = ""


def run_doctor(*, as_json: bool) -> int:
    """Print every check; 0 if rath works here, 1 if not."""
    checks = run_checks()
    works = all(check.level != "bad" for check in checks)
    screen = out()
    if as_json:
        screen.json({"ok": works, "checks": [asdict(check) for check in checks]})
        return 0 if works else 1
    wide = max(len(check.name) for check in checks)
    for check in checks:
        mark, style = _MARKS[check.level]
        screen.line((f"{mark} ", style), (f"{check.name:{wide}}  ", "bold"), one_line(check.found, 400))
        if check.remedy:
            screen.line(" " * (wide + 4), (f"→ {check.remedy}", "dim" if check.level == "note" else "yellow"))
    screen.line()
    if works:
        screen.line(("rath works here.", "green"), " Try `rath demo`: it needs no key, no network and no Docker.")
    else:
        screen.line(("rath does not work here yet:", "bold red"), " mend what is marked ✗.")
    return 0 if works else 1


def run_checks() -> list[Check]:
    """Look at everything, once. Takes up to about three seconds, most of them for a Docker engine that does not answer."""
    checks: list[Check] = []
    looks: tuple[Callable[[], list[Check]], ...] = (
        _python, _packages, _data_directory, _local_sandbox, _confinement, _docker, _bwrap, _models,
    )  # fmt: skip
    for look in looks:
        try:
            checks += look()
        except RathError as error:  # says what is wrong and what to do
            checks.append(Check(look.__name__.strip("_").replace("_", " "), "bad", one_line(str(error), 400)))
        except Exception as error:
            # A doctor who faints at the first symptom is of no use: what a check dies of is its finding.
            name = look.__name__.strip("_").replace("_", " ")
            checks.append(Check(name, "bad", f"{type(error).__name__}: {error}", "`rath --debug doctor` says more"))
    return checks


def _python() -> list[Check]:
    # An older Python cannot even load rath, so there is nothing to judge.
    return [
        Check("Python", "ok", f"{platform.python_version()} ({sys.executable})"),
        Check("rath", "ok", f"{rath.__version__} ({Path(rath.__file__).parent})"),
    ]


def _packages() -> list[Check]:
    missing = [name for name in (*_CORE, *_COMMAND_LINE) if not _version(name)]
    if missing:
        return [Check("packages", "bad", f"missing: {', '.join(missing)}", "pip install 'rath[cli]'")]
    return [Check("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in (*_CORE, *_COMMAND_LINE)))]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _data_directory() -> list[Check]:
    home = openrath_home()
    if os.environ.get("OPENRATH_HOME"):
        why = "OPENRATH_HOME"
    elif str(home.parent) == os.path.expanduser("~"):  # of an account without a home: left as it is
        why = f"no {DIRECTORY_NAME} at or above the working directory"
    else:
        why = f"the nearest {DIRECTORY_NAME}"
    existing = next((path for path in (home, *home.parents) if path.exists()), home)
    problem = _write_problem(existing)
    if problem:
        remedy = "set OPENRATH_HOME to a directory that you may write, or make this one writable"
        return [Check("data", "bad", f"{home} ({why}): {problem}", remedy)]
    there = "" if home.is_dir() else "; made at the first use"
    checks = [Check("data", "ok", f"{home} ({why}{there})")]
    free = shutil.disk_usage(existing).free
    amount = f"{free / (1 << 30):,.1f} GiB free"
    if free < _NO_SPACE:
        return [*checks, Check("disk", "bad", amount, "free some space: logs and workspaces go there")]
    level = "note" if free < _LITTLE_SPACE else "ok"
    return [*checks, Check("disk", level, amount, "logs and copies of workspaces may fill it" if level == "note" else "")]


def _write_problem(directory: Path) -> str:
    if not directory.is_dir():
        return "not a directory"
    try:
        with tempfile.TemporaryFile(dir=directory):
            return ""
    except OSError as error:
        return f"cannot be written: {error.strerror or error}"


def _local_sandbox() -> list[Check]:
    """The whole way once: a scripted model, a tool call, a process in a sandbox."""
    word = "rath-doctor-was-here"
    script = ScriptedClient(
        [{"tool_calls": [{"name": "run_shell_command", "arguments": {"cmd": f"echo {word}"}}]}, "Done."], by_turn=True
    )
    began = time.monotonic()
    start = create_user_session("Say that you were here.").to("local")
    session = Agent("You are a test.", script.as_provider(), timeout_s=_SELF_TEST_S)(start)
    try:
        rows = session.chunk_table.rows
    finally:
        start.close_sandbox()
        session.close_sandbox()
    said = [row.text or "" for row in rows]
    if not any('"exit_code":0' in text and word in text for text in said):
        return [Check("a run", "bad", f"a command in `local` gave {said[2:3]}", "is there a shell, /bin/sh?")]
    found = f"a scripted agent ran a command in `local` in {duration(time.monotonic() - began)}"
    return [Check("a run", "ok", found)]


def _confinement() -> list[Check]:
    with tempfile.TemporaryDirectory() as directory:
        confined = Confined(directory)
        by_kernel = confined._call is not None
        confined.close()
    if by_kernel:
        return [Check("file tools", "ok", "confined to the workspace by the kernel (openat2)")]
    return [Check("file tools", "ok", "confined to the workspace step by step: this kernel has no openat2, which is faster")]


def _docker() -> list[Check]:
    try:
        answered, what = cli.docker_probe.ping()
    except ImportError as error:
        return [Check("docker", "note", f"the package is missing: {error}", "pip install docker")]
    if answered:
        return [Check("docker", "ok", what)]
    return [Check("docker", "note", f"no engine: {what}", f"for sandboxes in containers: {where.remedy()}")]


def _bwrap() -> list[Check]:
    """The sandbox that needs no engine, really opened."""
    began = time.monotonic()
    try:
        ready = preflight.check()
    except SandboxUnavailable as error:
        return [Check("bwrap", "note", "no sandboxes by bubblewrap", str(error))]
    by = f"bubblewrap {ready.version} ({ready.bwrap}) with {ready.python.path}"
    return [Check("bwrap", "ok", f"{by} opened a sandbox in {duration(time.monotonic() - began)}")]


def _models() -> list[Check]:
    checks = []
    for vendor, key in (("OpenAI", "OPENAI_API_KEY"), ("Anthropic", "ANTHROPIC_API_KEY")):
        if os.environ.get(key):
            checks.append(Check(vendor, "ok", f"{key} is set (not shown, not tried)"))
        else:
            checks.append(Check(vendor, "note", f"{key} is not set", f"export {key}=… to use {vendor}'s models"))
    named = [name for name in ("RATH_MODEL", "OPENAI_MODEL", "ANTHROPIC_MODEL") if os.environ.get(name)]
    found = f"{', '.join(named)} set" if named else "no default: name one with --model, or set RATH_MODEL"
    return [*checks, Check("model", "ok", found)]
