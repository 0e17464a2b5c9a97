"""Limits on memory and processors, which need a control group: one of root's making, or a scope of the user's systemd.

bubblewrap makes no control groups. Root makes one directly (version 1 or 2); an ordinary user asks systemd for a scope,
where the machine has delegated that. Whether the limit really holds is looked up after the start: one that does not hold
ends the sandbox before anything has run in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from rath.backend.spec import BackendSandboxSpec, parse_bytes
from rath.errors import SandboxUnavailable

__all__ = ["Group", "Limits", "Scope", "holder", "sweep_groups"]

_TOP = Path("/sys/fs/cgroup")
_PREFIX = "rath-bwrap-"
_PERIOD_US = 100_000
_LEFT_S = 60.0
_GONE_S = 1.0
_ADVICE = "Leave memory and cpus out, or use the docker backend"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a spec allows. ``None``: no limit."""

    memory_bytes: int | None
    cpus: float | None

    @classmethod
    def of(cls, spec: BackendSandboxSpec) -> Limits | None:
        """Those of a spec; ``None`` if it sets none."""
        if spec.memory is None and spec.cpus is None:
            return None
        return cls(None if spec.memory is None else parse_bytes(spec.memory, "memory"), spec.cpus)


@dataclass
class Group:
    """A control group that root makes: the directories of one sandbox, one for each hierarchy."""

    directories: list[Path] = field(default_factory=list)

    prefix: tuple[str, ...] = ()

    @classmethod
    def make(cls, name: str, limits: Limits) -> Group:
        """Make it, with its limits set. Blocks.

        Raises:
            SandboxUnavailable: this machine does not let us.
        """
        group = cls()
        unified = (_TOP / "cgroup.controllers").exists()
        try:
            if limits.memory_bytes is not None:
                size = str(limits.memory_bytes)
                files = {"memory.max": size, "memory.swap.max": "0"} if unified else {
                    "memory.limit_in_bytes": size, "memory.memsw.limit_in_bytes": size,
                }  # fmt: skip
                group._set(name, "memory", unified, files)
            if limits.cpus is not None:
                quota = str(max(1000, int(limits.cpus * _PERIOD_US)))
                files = {"cpu.max": f"{quota} {_PERIOD_US}"} if unified else {
                    "cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": quota,
                }  # fmt: skip
                group._set(name, "cpu", unified, files)
        except OSError as error:
            group.remove()
            raise SandboxUnavailable(
                f"memory and cpus need a control group, and {error.filename} cannot be made or set ({error.strerror}). "
                f"{_ADVICE}"
            ) from error
        return group

    def _set(self, name: str, controller: str, unified: bool, files: dict[str, str]) -> None:
        top = _TOP if unified else _TOP / controller
        directory = top / f"{_PREFIX}{name}"
        if directory not in self.directories:
            directory.mkdir()
            self.directories.append(directory)
        for file, value in files.items():
            # No accounting of swap in this kernel: then there is no such file, and swap is not limited.
            if (directory / file).exists() or "sw" not in file:
                (directory / file).write_text(value)

    def enter(self, pid: int) -> None:
        """Put a process in it, which has no children yet."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(str(pid))

    def check(self, pid: int) -> None:
        """Nothing: :meth:`enter` would have raised."""

    def kills(self) -> int:
        """How often the kernel has killed in it for want of memory."""
        for directory in self.directories:
            for file in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    pairs = (line.split() for line in (directory / file).read_text().splitlines())
                    return next((int(value) for name, value in pairs if name == "oom_kill"), 0)
        return 0

    def remove(self) -> None:
        """Remove it, when its processes are gone. Blocks for the moment that the kernel takes to see that."""
        until = time.monotonic() + _GONE_S
        for directory in self.directories:
            while True:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > until:
                        break  # the next one sweeps it
                    time.sleep(0.002)
                else:
                    break


def sweep_groups() -> None:
    """Remove the control groups that killed processes left; one with processes in it cannot be removed. Blocks."""
    for top in (_TOP, _TOP / "memory", _TOP / "cpu"):
        for left in top.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_S:
                    left.rmdir()


@dataclass(frozen=True)
class Scope:
    """A scope of the user's own systemd: a command that becomes its arguments, in a control group with limits."""

    limits: Limits
    prefix: tuple[str, ...]

    @classmethod
    def make(cls, limits: Limits) -> Scope:
        """What to start with.

        Raises:
            SandboxUnavailable: there is no ``systemd-run``.
        """
        program = shutil.which("systemd-run")
        if program is None:
            raise SandboxUnavailable(f"memory and cpus need systemd-run where one is not root, and there is none. {_ADVICE}")
        options = []
        if limits.memory_bytes is not None:
            options += ["-p", f"MemoryMax={limits.memory_bytes}", "-p", "MemorySwapMax=0"]
        if limits.cpus is not None:
            options += ["-p", f"CPUQuota={max(1, round(limits.cpus * 100))}%"]
        return cls(limits, (program, "--user", "--scope", "--quiet", "--collect", *options, "--"))

    def enter(self, pid: int) -> None:
        """Nothing: the prefix does it."""

    def check(self, pid: int) -> None:
        """See that the limits hold for a process: systemd sets none for what the machine has not delegated.

        Raises:
            SandboxUnavailable: they do not.
        """
        try:
            line = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
            directory = _TOP / line.removeprefix("0::/")
            memory = (directory / "memory.max").read_text().strip() if self.limits.memory_bytes is not None else ""
            quota = (directory / "cpu.max").read_text().split()[0] if self.limits.cpus is not None else ""
        except (OSError, StopIteration) as error:
            raise SandboxUnavailable(f"{self._not_delegated()} ({error})") from error
        if "max" in (memory, quota):
            raise SandboxUnavailable(self._not_delegated())

    def _not_delegated(self) -> str:
        return (
            "memory and cpus need control groups that this machine has not delegated to its users: see `Delegate=` of "
            f"user@.service in `man systemd.resource-control`. {_ADVICE}"
        )

    def kills(self) -> int:
        """Nobody counts: the scope goes with its last process."""
        return 0

    def remove(self) -> None:
        """Nothing: systemd does."""


def holder(name: str, limits: Limits) -> Group | Scope:
    """What makes limits hold for the sandbox ``name``. Blocks.

    Raises:
        SandboxUnavailable: nothing does, here.
    """
    return Group.make(name, limits) if os.geteuid() == 0 else Scope.make(limits)
