"""The entry point of the command ``rath``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

__all__ = ["main"]

_run: Callable[[Sequence[str]], int] | None = None
_missing = ""
try:
    from rath.cli.app import run_app as _run
except ModuleNotFoundError as error:
    _missing = (error.name or "").partition(".")[0]
    if _missing not in ("rich", "typer", "click"):
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (the process's own by default) and return its exit code.

    0: it worked. 1: the run failed. 2: wrong usage, or the command line's packages are not installed. 129, 130, 143:
    SIGHUP, Ctrl-C, SIGTERM. 141: whoever read the output left.
    """
    if _run is None:
        sys.stderr.write(f"rath: the command line needs the package {_missing!r}: pip install 'rath[cli]'\n")
        return 2
    return _run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
