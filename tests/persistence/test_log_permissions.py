"""A directory that this process may not search: every way to its logs raises ``PersistenceError``, as for any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.persistence.test_directory_needs import run_python

AS_NOBODY = """
import contextlib, os, sys, tempfile
from datetime import timedelta
from pathlib import Path
from rath.errors import PersistenceError
from rath.session import Session, continue_session_loop
from rath.session.persistence import (
    delete_session, export_session, list_persisted_sessions, load_session, open_dir, pin_session, prune_sessions,
    resume_session, salvage, session_file, unpin_session, verify,
)
from rath.testing import ScriptedClient
from tests.persistence.samples import write_sample

mode = int(sys.argv[1], 8)
with tempfile.TemporaryDirectory() as base:
    os.chmod(base, 0o777)
    home = Path(base, "home")
    os.environ["OPENRATH_HOME"] = str(home)
    session = Session.create("user", "go")
    path = session_file(session.id)
    write_sample(path, session)
    out = Path(base, "out.jsonl")
    model = ScriptedClient(["x"]).as_provider()
    ways = {
        "verify": lambda: verify(session.id),
        "verify path": lambda: verify(path),
        "load": lambda: load_session(session.id),
        "load path": lambda: load_session("", path=path),
        "load of a directory": lambda: open_dir(path.parent).load(session.id),
        "resume": lambda: resume_session(session.id),
        "continue": lambda: continue_session_loop(session.id, agent_provider=model).synchronize(),
        "salvage": lambda: salvage(path, out),
        "export": lambda: export_session(session.id, out),
        "delete": lambda: delete_session(session.id),
        "delete path": lambda: delete_session(session.id, path=path),
        "pin": lambda: pin_session(session.id),
        "unpin": lambda: unpin_session(session.id),
        "below": lambda: list(open_dir(path.parent / "below")),
    }
    listing = {
        "open_dir": lambda: list(open_dir()),
        "open_dir path": lambda: list(open_dir(path.parent)),
        "list": lambda: list_persisted_sessions(),
        "prune": lambda: prune_sessions(older_than=timedelta()),
    }
    for way in (*ways.values(), *listing.values()):
        with contextlib.suppress(PersistenceError):
            way()  # so that nothing has to be imported by somebody who may not read it
    path.unlink(missing_ok=True)
    out.unlink(missing_ok=True)
    write_sample(path, session)
    home.chmod(0o755)
    path.parent.chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(65534)
    for name, way in {**ways, **({} if mode else listing)}.items():
        try:
            way()
            print(name, "did it")
        except PersistenceError as error:
            if "Permission denied" not in str(error):
                print(name, error)
        except BaseException as error:
            print(name, repr(error))
    if mode:
        (entry,) = open_dir()
        print(entry.verdict, entry.reason, entry.id, entry.pinned)
    os.seteuid(os.getuid())
    path.parent.chmod(0o755)
"""


@pytest.mark.parametrize(("mode", "said"), [("000", ""), ("444", "unreadable Permission denied None False\n")])
def test_a_directory_that_may_not_be_searched_is_said_to_be_one(tmp_path: Path, mode: str, said: str) -> None:
    assert run_python(AS_NOBODY, mode, home=tmp_path) == said
