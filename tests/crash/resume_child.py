"""A log that stopped is taken up: ``python -m tests.crash.resume_child resume|continue PATH``. The output says how it went."""

from __future__ import annotations

import json
import sys

from rath.session import continue_session_loop, resume_session
from rath.testing import ScriptedClient


def main(mode: str, path: str) -> None:
    try:
        if mode == "resume":
            session = resume_session(path)
        else:
            provider = ScriptedClient(["on it", "done"], by_turn=True).as_provider()
            session = continue_session_loop(path, agent_provider=provider, lazy=False)
        said = {"error": None, "digest": session.digest.hex()}
    except Exception as error:
        said = {"error": type(error).__name__, "digest": None}
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
