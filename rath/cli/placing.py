"""Where a command's tools run: the checks of ``--backend``, before anything begins."""

from __future__ import annotations

from rath.backend import registry
from rath.cli.console import Trouble
from rath.core import ports
from rath.errors import BackendNotFound, SandboxUnavailable

__all__ = ["check_backend"]


def check_backend(name: str) -> None:
    """See whether sandboxes of the backend ``name`` can be opened, by trying it.

    Raises:
        Trouble: there is no such backend, or it does not work here; the message says why and what to do.
    """
    try:
        backend = registry.get(name)
        ports.engine().run(backend._acheck())
    except BackendNotFound as error:
        raise Trouble(f"--backend: {error}") from error
    except SandboxUnavailable as error:
        raise Trouble(f"the backend {name!r} does not work here: {error}", code=1) from error
