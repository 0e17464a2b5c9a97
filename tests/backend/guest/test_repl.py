"""The interpreter that keeps its state, through the guest server that holds it."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rath.backend.guest import repl
from rath.backend.guest.config import KEEP_BYTES
from rath.testing.pace import within
from tests.backend.guest.client import Guest, Reply, unpack
from tests.backend.guest.conftest import ANYWHERE, opened

pytestmark = pytest.mark.slow

REPL = Path(repl.__file__).read_text()


class Answer(NamedTuple):
    """What a cell answered."""

    out: bytes
    err: bytes
    text: str | None
    error: str | None
    figures: list[bytes]


class Cells:
    """An interpreter inside a guest."""

    def __init__(self, guest: Guest, python: str) -> None:
        self.guest = guest
        self.python = python
        self.start()

    def start(self) -> None:
        self.id = self.guest.spawn(self.python, "-u", "-c", REPL, flags="pv")

    def begin(self, code: str | bytes, timeout_ms: int | str = "") -> int:
        call = self.guest.start("cell", self.id, timeout_ms, "")
        self.guest.feed(call, code if isinstance(code, bytes) else code.encode("utf-8", "surrogatepass"))
        return call

    def reply(self, code: str | bytes, timeout_ms: int | str = "") -> Reply:
        return self.guest.wait(self.begin(code, timeout_ms))

    def run(self, code: str | bytes) -> Answer:
        reply = self.reply(code)
        assert (reply.exit, reply.flags) == ("", ""), (reply, self.guest.reply(self.id))
        text, flags, error, *figures = unpack(reply.value)
        return Answer(
            reply.out, reply.err, text.decode() if b"v" in flags else None, error.decode() if b"e" in flags else None, figures
        )


@pytest.fixture(params=ANYWHERE)
def cells(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Cells]:
    in_container = request.param == "docker"
    if request.param == "switch" and not readable_by_all(sys.executable):
        pytest.skip("the tests' Python is not for other users")
    with opened(request.param, workspace) as guest:
        yield Cells(guest, "python3" if in_container else sys.executable)


def readable_by_all(path: str) -> bool:
    real = Path(os.path.realpath(path))
    return all(above.stat().st_mode & 0o005 == 0o005 for above in (real, *real.parents))


def test_state_survives_from_cell_to_cell(cells: Cells) -> None:
    assert cells.run("import sys\nx = 20\ndef f(): return x + 1") == (b"", b"", None, None, [])
    assert cells.run("print('out'); print('err', file=sys.stderr); x += 1; f()") == (b"out\n", b"err\n", "22", None, [])
    assert cells.run("x").text == "21"
    assert cells.run("x;").text == "21"
    assert cells.run("None").text is None
    assert cells.run("").text is None


def test_a_failure_shows_the_cells_own_lines_and_nothing_of_ours(cells: Cells) -> None:
    cells.run("def broken():\n    return 1 / 0  # the culprit")
    error = cells.run("print('before')\nbroken()").error
    assert error is not None
    lines = error.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "<cell 2>", line 2, in <module>'
    assert "    return 1 / 0  # the culprit" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "<string>" not in error
    syntax = cells.run("x = (").error
    assert syntax is not None
    assert "SyntaxError" in syntax
    assert "<string>" not in syntax
    assert cells.run("'alive'").text == "'alive'"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class R:\n def __repr__(self): raise ValueError('no repr')\nR()", "ValueError: no repr"),
        ("class E(Exception):\n def __str__(self): raise ValueError\nraise E", "E: <exception str() failed>"),
        ("'x' * 2000000", "at most 1,048,576"),
        ("def f(): f()\nf()", "RecursionError"),
        ("a\0b", "null bytes"),
        ("raise ValueError('\\ud800')", "ValueError: \\ud800"),
        ("input()", "EOFError"),
    ],
)
def test_a_cell_that_fails_leaves_the_interpreter_alive(cells: Cells, code: str, says: str) -> None:
    cells.run("kept = 1")
    answer = cells.run(code)
    assert answer.error is not None
    assert says in answer.error
    assert len(answer.error) < 300_000
    assert cells.run("kept").text == "1"


def test_what_programs_print_belongs_to_the_cell_that_started_them(cells: Cells) -> None:
    assert cells.run("import os; os.system('echo from a program; cat'); print('after')").out == b"from a program\nafter\n"
    cells.run("import threading, time\ndef late():\n time.sleep(.2); print('late')\nthreading.Thread(target=late).start()")
    time.sleep(0.4)
    assert cells.run("print('mine')").out == b"mine\n"


def test_code_is_main_and_finds_the_workspace(cells: Cells) -> None:
    cells.guest.put("helper.py", b"VALUE = 7\n")
    assert cells.run("import helper; (__name__, helper.VALUE, sorted(k for k in globals() if k[0] != '_'))").text == (
        "('__main__', 7, ['helper'])"
    )
    assert cells.run("import sys; sys.modules['__main__'].__dict__ is globals()").text == "True"
    assert cells.run("# coding: latin-1\n'\u00e9'".encode("latin-1")).text == "'é'"


def test_a_large_cell_and_a_flood_come_through(cells: Cells) -> None:
    data = "x" * 1_500_000
    assert cells.run(f"a = '{data}'\nlen(a)").text == "1500000"
    reply = cells.reply("import sys\nfor _ in range(40): sys.stdout.write('y' * 250000)\nprint('end')")
    assert reply.out_total == 10_000_004
    assert len(reply.out) == KEEP_BYTES
    assert reply.out.endswith(b"yend\n")


def test_a_forked_child_of_a_cell_answers_nothing(cells: Cells) -> None:
    assert cells.run("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\n'parent' if pid else 'child'").text == "'parent'"
    assert cells.run("1").text == "1"


def test_a_timeout_ends_the_interpreter_and_all_that_it_started(cells: Cells) -> None:
    start = time.monotonic()
    reply = cells.reply(
        "import subprocess, time\nprint('so far')\nsubprocess.Popen(['sh', '-c', 'sleep .9; touch survivor'])\ntime.sleep(30)", 600
    )
    assert time.monotonic() - start < within(2)
    assert (reply.flags, reply.exit, reply.out) == ("t", "-9", b"so far\n")
    assert cells.guest.wait(cells.id).flags == "k"
    assert cells.guest.call("cell", cells.id, "", "").kind == "os_error"
    time.sleep(0.6)
    assert cells.guest.call("exists", "survivor").done == [b"0"]
    cells.start()
    assert cells.run("1 + 1").text == "2"


def test_a_cell_that_kills_the_interpreter_is_told(cells: Cells) -> None:
    reply = cells.reply("import os; print('last words'); os._exit(5)")
    assert (reply.flags, reply.exit, reply.out) == ("x", "5", b"last words\n")
    assert cells.guest.wait(cells.id).exit == "5"


def test_a_cell_can_be_ended_and_only_one_runs(cells: Cells) -> None:
    call = cells.begin("import time; time.sleep(30)")
    second = cells.guest.start("cell", cells.id, "", "")
    assert cells.guest.wait(second).kind == "busy"
    cells.guest.send(5, call)
    assert cells.guest.wait(call, 2).flags == "k"


def test_a_cell_that_answers_by_itself_hurts_only_itself(cells: Cells) -> None:
    for forged in (r"b'\xff' * 8", "bytes(4)", r"b'\0\0\0\7garbage' * 3"):
        cells.reply(f"import os; os.write(251, {forged})")
        assert cells.guest.sh("echo good").out == b"good\n"
        if not cells.guest.reply(cells.id).ended:
            cells.guest.send(5, cells.id)
            cells.guest.wait(cells.id)
        cells.start()
        assert cells.run("1").text == "1"


@pytest.fixture
def full(workspace: Path) -> Iterator[Cells]:
    """With the whole standard library."""
    with opened("same", workspace) as guest:
        yield Cells(guest, sys.executable)


def test_await_works_at_the_top(full: Cells) -> None:
    code = "import asyncio\nasync def f():\n await asyncio.sleep(0.01)\n return 5\nq = asyncio.Queue()\nawait f()"
    assert full.run(code).text == "5"
    assert full.run("await q.put(1)\nawait q.get()").text == "1"
    error = full.run("async def g():\n raise ValueError('here')\nawait g()").error
    assert error is not None
    assert error.splitlines()[1] == '  File "<cell 3>", line 3, in <module>'


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_figures_are_returned_and_closed(full: Cells) -> None:
    answer = full.run("import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.figure(); plt.show()")
    assert [figure[:4] for figure in answer.figures] == [b"\x89PNG"] * 2
    assert answer.err == b""
    assert full.run("plt.get_fignums()") == (b"", b"", "[]", None, [])


PYPLOT = """
import sys
class Figure:
    def savefig(self, file, **how): file.write(b"PNG " + repr(sorted(how.items())).encode())
class pyplot:
    open = [1, 2]
    get_fignums = staticmethod(lambda: list(pyplot.open))
    figure = staticmethod(lambda number: Figure())
    close = staticmethod(lambda which: pyplot.open.clear())
sys.modules["matplotlib.pyplot"] = pyplot
"""


def test_open_figures_come_with_the_answer(full: Cells) -> None:
    """With something in place of matplotlib, which is large."""
    assert full.run(PYPLOT).figures == [b"PNG [('bbox_inches', 'tight'), ('format', 'png')]"] * 2
    assert full.run("1").figures == []
