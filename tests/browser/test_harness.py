"""The harness would notice: what an attack does in a page that obeys it, it sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser.chrome import Chrome, ChromeError
from tests.browser.harness import Beacon, assert_hostile_text_is_shown, assert_shown, seen_as
from tests.browser.payloads import ALIVE, HOST, PAYLOADS

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize("payload", ALIVE)
def test_a_page_that_obeys_a_text_is_caught(chrome: Chrome, payload: str, tmp_path: Path) -> None:
    silent = Beacon()
    try:
        with pytest.raises(AssertionError, match="ran|asked for"):
            assert_hostile_text_is_shown(chrome, silent, f"<p>{payload}</p>", [], tmp_path)
    finally:
        silent.close()


def test_a_request_is_seen_in_the_browser_and_where_it_arrives(chrome: Chrome, beacon: Beacon, tmp_path: Path) -> None:
    beacon.forget()
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><img src=http://{HOST}/rath-hit/1><link rel=stylesheet href=http://a.{HOST}/rath-hit/2>")
    tab = chrome.tab()
    tab.open(path)
    assert sorted(tab.requests) == [f"http://a.{HOST}/rath-hit/2", f"http://{HOST}/rath-hit/1"]
    assert len(beacon.hits()) == 2
    tab.close()


def test_a_dialog_a_violation_and_an_error_are_seen(chrome: Chrome, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        "<!doctype html><meta http-equiv=Content-Security-Policy content=\"img-src 'none'\">"
        "<script>alert(7); setTimeout(() => nothing.there)</script><img src=data:,x>"
    )
    tab = chrome.tab()
    tab.open(path)
    tab.wait("window.__refused.length > 0")
    assert tab.ran() == ["dialog 7"]
    assert tab.refused() == ["img-src data"]
    assert any("nothing is not defined" in failure for failure in tab.failures)
    with pytest.raises(ChromeError, match="ReferenceError"):
        tab.js("nothing.there")
    tab.close()


def test_a_text_that_is_left_out_or_obeyed_is_missed(chrome: Chrome, beacon: Beacon, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="1 not shown"):
        assert_hostile_text_is_shown(chrome, beacon, "<p>one <b>two</b></p>", ["one", "<b>two</b>"], tmp_path)
    assert_hostile_text_is_shown(chrome, beacon, "<details><p>one &lt;b&gt;two&lt;/b&gt;</p></details>", ["one <b>two</b>"], tmp_path)


def test_there_are_many_different_payloads() -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) >= 500
    assert len({seen_as(payload) for payload in PAYLOADS}) >= 500
    assert_shown(json.dumps("x"), ["x"])

