"""What a ``local`` workspace starts from: a directory of the user's, or a frozen copy of another workspace."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from rath.backend.host.diff import Baseline
from rath.backend.host.own import own_directory, remove_own
from rath.backend.host.paths import Confined
from rath.backend.host.tree import check_space, copy_tree
from rath.errors import SandboxUnavailable

__all__ = ["Snapshot", "copy_directory", "enter_directory"]

_log = logging.getLogger("rath.backend")


def enter_directory(path: str) -> tuple[Confined, Baseline]:
    """The user's directory ``path`` and its baseline. Makes it if it is missing, and logs that at INFO. Blocks.

    Raises:
        SandboxUnavailable: it cannot be made or entered.
    """
    try:
        try:
            os.makedirs(path)
            _log.info("made the directory %s: a sandbox has it as its working_dir, and it was not there", path)
        except FileExistsError:
            pass
        root = Confined(path)
    except OSError as error:
        raise SandboxUnavailable(
            f"working_dir {path!r} cannot be used: {error.strerror}. Name a directory that you may write to"
        ) from error
    try:
        return root, Baseline.of(root)
    except BaseException:
        root.close()
        raise


def copy_directory(path: str) -> Snapshot:
    """A copy of the user's directory ``path``, with its baseline. Blocks.

    Raises:
        SandboxUnavailable: it cannot be entered.
        SandboxError: it cannot be copied, or the copy does not fit on the disk.
    """
    try:
        root = Confined(path)
    except OSError as error:
        raise SandboxUnavailable(
            f"workspace {path!r} cannot be used: {error.strerror}. Name a directory that is there"
        ) from error
    baseline = Baseline.of(root)
    try:
        return Snapshot.take(root, baseline, lambda: False)
    finally:
        baseline.drop()
        root.close()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen copy of a workspace, in a directory of our own."""

    path: str
    baseline: Baseline

    @classmethod
    def take(cls, root: Confined, baseline: Baseline, stop: Callable[[], bool]) -> Snapshot:
        """Copy ``root``, until ``stop`` says to end that. Blocks.

        Raises:
            SandboxError: it cannot be copied, does not fit on the disk, or was stopped.
        """
        path = own_directory()
        try:
            check_space(root, path, stop)
            copy_tree(root, path, stop=stop)
        except BaseException:
            remove_own(path)
            raise
        return cls(path, baseline.share())

    def discard(self) -> None:
        """Remove it, where it was not used. Blocks."""
        remove_own(self.path)
        self.baseline.drop()
