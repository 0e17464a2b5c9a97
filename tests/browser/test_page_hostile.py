"""The lineage page in a browser, full of hostile text: it is all there to read, and none of it does anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from rath.display.page import graph_page
from rath.errors import PersistenceError
from rath.session.chunk import ChunkTable
from rath.session.graph.lineage import LineageNode
from tests.browser.chrome import Chrome, Tab
from tests.browser.corpus import hostile_nodes, hostile_tables
from tests.browser.harness import Beacon, assert_shown, assert_untouched, seen_as, squeezed
from tests.browser.payloads import PAYLOADS

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]

TABLES = hostile_tables(PAYLOADS)
# A tool's name is one line of 80 characters; a large payload that is JSON is spelled anew.
SMALL = [text for text in PAYLOADS if len(text) < 4000]

# Scrolls through an element that fills itself as it comes into sight, unfolds what is folded, and returns all it showed.
SCROLL = """
(async (box) => {
  const texts = new Set();
  const rest = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 12)));
  box.scrollTop = 0;
  for (let still = 0; still < 6;) {
    await rest();
    for (const fold of box.querySelectorAll("details:not([open])")) fold.open = true;
    while (box.querySelector("[data-state=filling]")) await rest();
    for (const item of box.querySelectorAll(".item, .row")) texts.add(item.textContent);
    const before = box.scrollTop;
    box.scrollTop += box.clientHeight * 0.8;
    still = box.scrollTop === before ? still + 1 : 0;
  }
  return [...texts].join("\\n");
})
"""


@pytest.fixture
def tab(chrome: Chrome, beacon: Beacon) -> Iterator[Tab]:
    beacon.forget()
    found = chrome.tab(width=1600, height=1600)
    yield found
    found.close()


def opened(tab: Tab, html: str, folder: Path) -> None:
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    tab.open(path)
    tab.wait("document.documentElement.dataset.state === 'ready'")


def choose(tab: Tab, number: int) -> None:
    tab.js(f"location.hash = '{UUID(int=number).hex}'")
    tab.wait("document.getElementById('panel').dataset.state === 'ready'")


def lone_nodes(count: int) -> list[LineageNode]:
    return [LineageNode(UUID(int=(number + 1) << 64), label=f"n{number}", rows=1) for number in range(count)]


@pytest.mark.parametrize("place", list(TABLES))
def test_what_sessions_say_is_text(tab: Tab, beacon: Beacon, place: str, tmp_path: Path) -> None:
    opened(tab, graph_page(lone_nodes(1), transcript=lambda _id: TABLES[place]), tmp_path)
    choose(tab, 1 << 64)
    text = tab.js(f"{SCROLL}(document.getElementById('panel'))", timeout_s=200)
    assert_untouched(tab, beacon)
    if place in ("json arguments", "odd"):
        # Shown as JSON: what is a quote or a backslash in it has one more before it.
        assert_shown(text, [json.dumps(payload, ensure_ascii=False)[1:-1] for payload in SMALL if "\\" not in repr(payload)], 40)
    else:
        assert_shown(text, SMALL, 40)


def test_what_sessions_are_called_is_text(tab: Tab, beacon: Beacon, tmp_path: Path) -> None:
    opened(tab, graph_page(hostile_nodes(PAYLOADS)), tmp_path)
    listed = tab.js(f"{SCROLL}(document.getElementById('list'))", timeout_s=100)
    assert_shown(listed, SMALL, 40)
    assert_untouched(tab, beacon)


def test_facts_of_sessions_are_text(tab: Tab, beacon: Beacon, tmp_path: Path) -> None:
    chosen = PAYLOADS[::4]
    opened(tab, graph_page(hostile_nodes(chosen)), tmp_path)
    tab.js("document.getElementById('filters-button').click()")
    panels = tab.js(
        """(async () => {
          const found = [];
          for (const id of JSON.parse(document.getElementById("rath-data").textContent).nodes.id) {
            location.hash = id;
            const panel = document.getElementById("panel"), shown = () => panel.querySelector("dd")?.textContent.replaceAll("-", "");
            while (!(panel.dataset.state === "ready" && shown() === id)) await new Promise(done => setTimeout(done, 5));
            found.push([...panel.querySelectorAll("dd")].map(each => each.textContent));
          }
          return found;
        })()""",
        timeout_s=200,
    )
    assert_untouched(tab, beacon)
    assert len(panels) == len(chosen)
    for payload, facts in zip(chosen, panels, strict=True):
        if payload in SMALL and payload.strip():
            # Operator, model, log, sandbox, snapshot, digest, an extra; a path spells some texts anew.
            assert sum(seen_as(payload, 40) in squeezed(fact) for fact in facts) >= 6, (payload, facts)


def test_drawing_hostile_names_at_every_distance_does_nothing_else(tab: Tab, beacon: Beacon, tmp_path: Path) -> None:
    opened(tab, graph_page(hostile_nodes(PAYLOADS)), tmp_path)
    tab.js("document.getElementById('graph').focus()")
    for key in "++++++++--------------0":
        tab.key(key)
    tab.click(900, 800)
    for key in ("ArrowDown", "ArrowRight", "ArrowUp", "Enter"):
        tab.key(key)
    assert_untouched(tab, beacon)


@pytest.mark.parametrize("number", range(0, len(PAYLOADS), 50))
def test_titles_and_errors_are_text(tab: Tab, beacon: Beacon, number: int, tmp_path: Path) -> None:
    title = PAYLOADS[number]

    def unreadable(session_id: UUID) -> ChunkTable:
        raise PersistenceError(PAYLOADS[number + 3 * ((session_id.int >> 64) - 1)])

    chosen = PAYLOADS[number : number + 50 : 3]
    opened(tab, graph_page(lone_nodes(len(chosen)), transcript=unreadable, title=title), tmp_path)
    assert_shown(tab.js("document.querySelector('h1').textContent + document.title"), [title], 40)
    for at, payload in enumerate(chosen):
        choose(tab, (at + 1) << 64)
        if payload.strip() and len(payload) < 4000:
            tab.wait(f"document.querySelector('#panel h2').textContent === 'n{at}'")
            assert_shown(tab.js("document.querySelector('#panel .error').textContent"), [payload], 40)
    assert_untouched(tab, beacon)


def test_hostile_words_can_be_searched_for_and_are_marked_as_text(tab: Tab, beacon: Beacon, tmp_path: Path) -> None:
    opened(tab, graph_page(lone_nodes(1), transcript=lambda _id: TABLES["said"]), tmp_path)
    for payload in [text for text in SMALL if text.strip() == text and text.isprintable() and 2 < len(text) < 200][::9]:
        tab.js(
            f"(() => {{ const box = document.getElementById('search'); box.value = {json.dumps(payload)};"
            "document.getElementById('main').dataset.search = 'asked'; box.dispatchEvent(new Event('input')); })()"
        )
        tab.wait("document.getElementById('main').dataset.search === 'done'")
        assert tab.js("document.querySelectorAll('.item').length") == 1, payload
        # Upper and lower case are one to a search, so another text may be the one that is shown.
        assert_shown(tab.js("document.querySelector('.item').textContent").lower(), [payload.lower()], 30)
    assert_untouched(tab, beacon)


def test_comparing_hostile_sessions_shows_both_as_text(tab: Tab, beacon: Beacon, tmp_path: Path) -> None:
    half = len(PAYLOADS) // 2
    tables = hostile_tables(PAYLOADS[:half])["said"], hostile_tables(PAYLOADS[half:])["command"]
    opened(tab, graph_page(lone_nodes(2), transcript=lambda i: tables[(i.int >> 64) - 1]), tmp_path)
    choose(tab, 1 << 64)
    tab.js("[...document.querySelectorAll('.item')][1].dispatchEvent(new MouseEvent('click', {shiftKey: true, bubbles: true}))")
    tab.wait("document.getElementById('panel').dataset.state === 'ready' && document.querySelector('.facts.pair') !== null")
    text = tab.js(f"{SCROLL}(document.getElementById('panel'))", timeout_s=200)
    assert_shown(text, SMALL, 40)
    assert_untouched(tab, beacon)


def test_the_page_refuses_what_a_slip_would_let_through(tab: Tab, tmp_path: Path) -> None:
    """Were a text ever to become markup, the policy would stand between it and the reader."""
    opened(tab, graph_page(lone_nodes(1)), tmp_path)
    assert tab.js("(() => { try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (error) { return error.name } })()") == "TypeError"
    assert tab.js("(() => { try { document.createElement('script').text = 'pwn(1)'; return 'set' } catch (error) { return error.name } })()") == "TypeError"
    assert tab.js("(() => { try { document.body.setAttribute('onclick', 'pwn(1)'); document.body.click() } catch {} return window.__ran.length })()") == 0
    assert tab.js("fetch('http://evil.example/rath-hit').then(() => 'sent', error => error.name)") == "TypeError"
    tab.js("document.body.append(Object.assign(document.createElement('img'), {src: 'http://evil.example/rath-hit/image'}))")
    tab.wait("window.__refused.some(what => what.startsWith('img-src'))")
    assert tab.ran() == []
    assert any(what.startswith("connect-src") for what in tab.refused())
