"""The live widget: drawn while runs go on, seldom enough, and no longer than needed."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from weakref import ref

import pytest

import rath
from rath.display.watching import LEAST_INTERVAL_S
from rath.llm.scripted import ScriptedClient
from rath.session.loop import run_session_loop
from rath.session.manager import SessionRegistry
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session
from tests.display.support import assert_harmless

pytest.importorskip("anywidget")


def running(latency_s: float) -> Session:
    client = ScriptedClient(["Done."], latency_s=latency_s)
    return run_session_loop(
        create_user_session("Go."), create_system_session("You answer."), agent_provider=client.as_provider()
    )


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def watchers() -> int:
    return sum(thread.name == "rath-watch" for thread in threading.enumerate())


@pytest.mark.slow
def test_a_widget_is_drawn_anew_until_every_run_has_ended() -> None:
    session = running(3)
    widget = rath.watch(session)
    drawn: list[float] = []
    widget.observe(lambda change: drawn.append(time.monotonic()), names="html")
    assert widget.state == "runs go on"
    assert "Done." not in widget.html
    until(lambda: widget.state == "every run has ended", 30)
    assert "Done." in widget.html
    assert_harmless(widget.html)
    assert all(later - before >= LEAST_INTERVAL_S * 0.9 for before, later in zip(drawn, drawn[1:], strict=False))
    until(lambda: watchers() == 0)
    widget.close()


def test_watching_a_registry_may_begin_before_the_first_run() -> None:
    registry = SessionRegistry()
    widget = rath.watch(registry, idle_s=30)
    assert widget.state == "no run goes on; waiting for the next"
    session = running(0)
    registry.register(session)
    until(lambda: session.id.hex[:8] in widget.html and "Done." in widget.html)
    widget.close()
    until(lambda: watchers() == 0)


@pytest.mark.slow
def test_watching_a_directory_that_nobody_writes_to_ends(tmp_path: Path) -> None:
    widget = rath.watch(dir=tmp_path, idle_s=0.3)
    until(lambda: widget.state == "every run has ended")
    until(lambda: watchers() == 0)
    widget.close()


def test_what_has_ended_is_drawn_once_and_not_watched() -> None:
    widget = rath.watch(rath.lineage(Session.from_user_message("Go.")), interval_s=0.01)
    assert widget.state == "every run has ended"
    assert watchers() == 0
    widget.close()


def test_closing_a_widget_ends_the_watching_of_a_session_that_never_ends() -> None:
    session = running(30)
    widget = rath.watch(session)
    assert watchers() == 1
    widget.close()
    until(lambda: watchers() == 0)
    session.cancel()


def test_a_widget_keeps_no_session_alive() -> None:
    session = Session.from_user_message("Go.")
    widget = rath.watch(session)
    alive = ref(session)
    del session
    gc.collect()
    assert alive() is None
    widget.close()


def test_a_chosen_session_is_drawn_with_its_rows() -> None:
    sessions = [Session.from_user_message(f"message {number}") for number in range(20)]
    widget = rath.watch(sessions)
    first = rath.lineage(sessions).nodes[0]
    text = sessions[[session.id for session in sessions].index(first.id)].partial[0].text
    assert text is not None
    assert f">{text}<" not in widget.html
    widget.chosen = str(first.id)
    assert f">{text}<" in widget.html
    widget.chosen = "no id"
    assert f">{text}<" not in widget.html
    widget.close()


def test_a_saved_widget_leaves_the_graph_as_it_was() -> None:
    session = running(30)
    widget = rath.watch(session)
    data, _metadata = widget._repr_mimebundle_()
    session.cancel()
    widget.close()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert data["text/plain"] == "rath.watch: runs go on"
    page = assert_harmless(data["text/html"])
    assert session.id.hex[:8] in page.text
    assert page.text.endswith("As it was when this cell ran: runs go on.")


@pytest.mark.slow
def test_without_anywidget_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['anywidget'] = None\n"
        "import rath\n"
        "try: rath.watch(rath.Session.from_user_message('x'))\n"
        "except rath.errors.UsageError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=True)
    assert "pip install 'rath[widget]'" in found.stdout
