"""The lineage page in use: quick to open, easy to search, to read and to compare, on a phone and on a wide screen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from rath.display.page import graph_page
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode
from tests.browser.chrome import Chrome, Tab

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(120)]

STATUSES = ("completed", "completed", "completed", "failed", "completed", "cancelled", "completed", "running", "pending")


def story(count: int) -> tuple[list[LineageNode], dict[UUID, ChunkTable]]:
    """A task, and agents that fork it and each other, go on, and are merged."""
    nodes = [LineageNode(UUID(int=1), label="user", kind=LineageKind.LEAF_USER, status="completed", rows=1)]
    tables = {UUID(int=1): ChunkTable((user_text_chunk("Mend the parser."),))}
    while len(nodes) < count:
        at = len(nodes)
        parent = nodes[max(0, at - 1 - (at * 7919) % 23)]
        kind = (LineageKind.OP_FORK, LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_LOOP, LineageKind.OP_MERGE)[at % 4]
        loop = kind is LineageKind.OP_SESSION_LOOP
        more = (nodes[at - 1].id,) if kind is LineageKind.OP_MERGE and nodes[at - 1].id != parent.id else ()
        base = tables[parent.id]
        added = (user_text_chunk(f"finding {at} about token{at % 97}"),) if loop else ()
        node = LineageNode(
            UUID(int=at + 1),
            (parent.id, *more),
            operator="run_session_loop" if loop else kind.value,
            kind=kind,
            status=STATUSES[at % len(STATUSES)],
            rows=len(base) + len(added),
            usage=RathLLMTokenUsage(100, at % 50, 100 + at % 50) if loop else None,
            label=f"agent {at}",
            model="model-a" if at % 3 else "model-b",
            cost_usd=0.001 if loop and at % 5 else None,
        )
        nodes.append(node)
        tables[node.id] = base.extend(*added)
    return nodes, tables


@pytest.fixture
def tab(chrome: Chrome) -> Iterator[Tab]:
    found = chrome.tab(width=1600, height=900)
    yield found
    assert (found.failures, found.requests, found.refused()) == ([], [], [])
    found.close()


def opened(tab: Tab, folder: Path, count: int, **how: Any) -> list[LineageNode]:
    nodes, tables = story(count)
    path = folder / f"page-{count}.html"
    path.write_text(graph_page(nodes, transcript=tables.get, **how), encoding="utf-8")
    tab.open(path)
    tab.wait("document.documentElement.dataset.state === 'ready'")
    return nodes


def search(tab: Tab, words: str) -> str:
    tab.js(
        f"(() => {{ const box = document.getElementById('search'); box.value = {json.dumps(words)};"
        "document.getElementById('main').dataset.search = 'asked'; box.dispatchEvent(new Event('input')); })()"
    )
    tab.wait("document.getElementById('main').dataset.search === 'done'")
    found: str = tab.js("document.getElementById('found').textContent")
    return found


def choose(tab: Tab, number: int) -> str:
    tab.js(f"location.hash = '{UUID(int=number)}'")
    tab.wait(f"document.getElementById('panel').textContent.includes('{UUID(int=number)}')")
    tab.wait("document.getElementById('panel').dataset.state === 'ready'")
    tab.wait("document.querySelector('#panel .block.empty') === null || document.querySelector('#panel .row') !== null")
    text: str = tab.js("document.getElementById('panel').innerText")
    return text


def test_ten_thousand_sessions_are_painted_within_two_seconds(chrome: Chrome, tmp_path: Path) -> None:
    nodes, tables = story(10_000)
    path = tmp_path / "large.html"
    path.write_text(graph_page(nodes, transcript=tables.get), encoding="utf-8")
    best: list[tuple[float, float]] = []
    for _attempt in range(3):
        tab = chrome.tab(width=1600, height=900)
        tab.open(path)
        tab.wait("document.documentElement.dataset.state === 'ready'")
        painted, drawn = tab.first_paint_ms(), tab.js("performance.getEntriesByName('rath-drawn')[0].startTime")
        best.append((max(painted, drawn), painted))
        # What is not in sight is not there.
        assert tab.js("document.querySelectorAll('*').length") < 600
        tab.close()
    print(f"10,000 sessions, {path.stat().st_size:,} bytes: first paint {[round(p) for _d, p in best]} ms, graph drawn {[round(d) for d, _p in best]} ms")
    # The machine may be busy with others; a page that is too slow is so each time.
    assert min(best)[0] < 2000


def test_a_session_is_found_by_its_id_its_name_its_model_and_by_what_was_said(tab: Tab, tmp_path: Path) -> None:
    opened(tab, tmp_path, 200)
    assert search(tab, "agent 77") == "1 session of 200 matches"
    assert search(tab, str(UUID(int=42))) == "1 session of 200 matches"
    assert search(tab, "MODEL-B") == "66 sessions of 200 match"
    assert search(tab, "finding 90 about") == "1 session of 200 matches, 1 transcript among them"
    assert tab.js("document.querySelector('.item .about mark').textContent") == "finding 90 about"
    assert search(tab, "nobody said this") == "0 sessions of 200 match"
    assert "No session matches" in tab.js("document.getElementById('list').textContent")
    assert search(tab, "") == "200 sessions"


def test_filters_narrow_what_is_listed(tab: Tab, tmp_path: Path) -> None:
    nodes = opened(tab, tmp_path, 90)
    failed = sum(node.status == "failed" for node in nodes)
    loops = sum(node.status == "failed" and node.kind is LineageKind.OP_SESSION_LOOP for node in nodes)
    tab.js("document.getElementById('filters-button').click()")

    def press(word: str) -> str:
        tab.js(f"[...document.querySelectorAll('#filters button')].find(chip => chip.textContent.startsWith('{word}')).click()")
        text: str = tab.js("document.getElementById('found').textContent")
        return text

    assert press("failed") == f"{failed} sessions of 90 match"
    assert press("op_session_loop") == f"{loops} sessions of 90 match"
    assert tab.js("document.getElementById('filters-button').textContent") == "Filter (2)"
    press("failed")
    press("op_session_loop")
    assert tab.js("document.getElementById('found').textContent") == "90 sessions"


def test_a_session_shows_its_facts_its_kin_and_its_transcript(tab: Tab, tmp_path: Path) -> None:
    nodes = opened(tab, tmp_path, 60)
    at = next(place for place, node in enumerate(nodes) if node.kind is LineageKind.OP_SESSION_LOOP and node.rows and node.rows > 2 and node.cost_usd)
    text = choose(tab, at + 1)
    for words in (str(nodes[at].id), "run_session_loop", "model-", "tokens, with history", "Made from", "Mend the parser.", f"finding {at} about"):
        assert words in text
    assert f"Transcript: {nodes[at].rows} rows" in text


def test_history_is_charged_once_and_what_is_unknown_is_said(tab: Tab, tmp_path: Path) -> None:
    usage = RathLLMTokenUsage(60, 40, 100)
    ids = [UUID(int=number + 1) for number in range(4)]
    loop = {"kind": LineageKind.OP_SESSION_LOOP, "usage": usage, "status": "completed"}
    nodes = [
        LineageNode(ids[0], cost_usd=0.25, **loop),
        LineageNode(ids[1], (ids[0],), cost_usd=0.5, **loop),
        LineageNode(ids[2], (ids[0],), **loop),
        LineageNode(ids[3], (ids[1], ids[2]), kind=LineageKind.OP_MERGE, status="completed"),
    ]
    path = tmp_path / "page.html"
    path.write_text(graph_page(nodes), encoding="utf-8")
    tab.open(path)
    tab.wait("document.documentElement.dataset.state === 'ready'")
    tab.js(f"location.hash = '{ids[3]}'")
    tab.wait("document.querySelector('#panel dl') !== null")
    facts = tab.js("Object.fromEntries([...document.querySelectorAll('#panel dt')].map(dt => [dt.textContent, dt.nextSibling.textContent]))")
    assert facts["tokens"] == "none of its own"
    assert facts["tokens, with history"] == "300"
    assert facts["cost, with history"] == "$0.75 + 1 session unknown"
    tab.js(f"location.hash = '{ids[2]}'")
    tab.wait(f"document.querySelector('#panel code').textContent === '{ids[2]}'")
    assert "unknown: no price" in tab.js("document.getElementById('panel').textContent")


def test_two_sessions_are_compared_where_they_part(tab: Tab, tmp_path: Path) -> None:
    base = ChunkTable(tuple(user_text_chunk(f"shared {number}") for number in range(12)))
    tables = {
        UUID(int=1): base,
        UUID(int=2): base.extend(user_text_chunk("left"), user_text_chunk("both"), user_text_chunk("end")),
        UUID(int=3): base.extend(user_text_chunk("both"), user_text_chunk("right"), user_text_chunk("end")),
    }
    nodes = [LineageNode(i, () if i.int == 1 else (UUID(int=1),), label=f"s{i.int}", status="completed", rows=len(tables[i])) for i in tables]
    path = tmp_path / "page.html"
    path.write_text(graph_page(nodes, transcript=tables.get), encoding="utf-8")
    tab.open(path)
    tab.wait("document.documentElement.dataset.state === 'ready'")
    choose(tab, 2)
    tab.js("[...document.querySelectorAll('.item')][2].dispatchEvent(new MouseEvent('click', {shiftKey: true, bubbles: true}))")
    tab.wait("document.querySelectorAll('#panel .row').length === 7")
    assert tab.js("[...document.querySelectorAll('#panel .row')].map(row => row.textContent)") == [
        "… 10 equal rows …", "user 10shared 10", "user 11shared 11", "user 12− only in Aleft", "user 13both",
        "user 13+ only in Bright", "user 14end",
    ]
    assert tab.js("document.querySelector('#panel .row.removed .said').textContent") == "left"
    assert tab.js("document.querySelector('#panel .row.added .said').textContent") == "right"
    assert "The first 12 rows are the same · − 1 only in A · + 1 only in B" in tab.js("document.getElementById('panel').textContent")


def test_the_graph_is_walked_with_the_keyboard(tab: Tab, tmp_path: Path) -> None:
    opened(tab, tmp_path, 30)
    tab.key("/")
    assert tab.js("document.activeElement.id") == "search"
    tab.js("document.getElementById('graph').focus()")
    tab.key("ArrowDown")
    assert tab.js("document.getElementById('spoken').textContent").startswith("user, completed, 1 row, 0 parents")
    tab.key("ArrowDown")
    assert "1 parent" in tab.js("document.getElementById('spoken').textContent")
    tab.key("Enter")
    tab.wait("document.querySelector('#panel h2') !== null")
    assert tab.js("document.querySelector('#panel h2').textContent").startswith("agent ")
    tab.key("Escape")
    tab.wait("document.querySelector('#panel h2') === null")
    tab.js("document.getElementById('list').focus()")
    tab.key("ArrowDown")
    tab.key("Enter")
    tab.wait("document.querySelector('#panel h2')?.textContent === 'agent 1'")


def test_a_click_on_the_drawing_opens_what_is_drawn_there(tab: Tab, tmp_path: Path) -> None:
    nodes, _tables = story(1)
    path = tmp_path / "page.html"
    path.write_text(graph_page(nodes), encoding="utf-8")
    tab.open(path)
    tab.wait("document.documentElement.dataset.state === 'ready'")
    box = tab.js("(({x, y, width, height}) => [x, y, width, height])(document.getElementById('graph').getBoundingClientRect())")
    tab.click(box[0] + box[2] / 2, box[1] + box[3] / 2)
    tab.wait("document.querySelector('#panel h2')?.textContent === 'user'")


def test_a_hundred_thousand_rows_are_read_a_window_at_a_time(tab: Tab, tmp_path: Path) -> None:
    rows = ChunkTable(tuple(user_text_chunk(f"row number {number}") for number in range(100_000)))
    path = tmp_path / "page.html"
    path.write_text(graph_page([LineageNode(UUID(int=1), rows=100_000)], transcript=lambda _id: rows), encoding="utf-8")
    tab.open(path)
    tab.wait("document.documentElement.dataset.state === 'ready'")
    assert "Transcript: 100,000 rows" in choose(tab, 1)
    tab.js("(panel => { panel.scrollTop = panel.scrollHeight })(document.getElementById('panel'))")
    tab.wait("document.getElementById('panel').textContent.includes('row number 99999')", timeout_s=30)
    assert tab.js("document.querySelectorAll('#panel .row').length") < 400


@pytest.mark.parametrize(("width", "height"), [(320, 640), (700, 900), (1600, 900)])
@pytest.mark.parametrize("dark", [False, True])
def test_the_layout_holds_at_every_width_in_light_and_dark(chrome: Chrome, width: int, height: int, dark: bool, tmp_path: Path) -> None:
    """Screenshots go to ``RATH_SCREENSHOTS``, if that is set."""
    tab = chrome.tab(width=width, height=height, dark=dark)
    folder = Path(os.environ.get("RATH_SCREENSHOTS", str(tmp_path)))
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{width}-{'dark' if dark else 'light'}"
    for count in (3, 200):
        opened(tab, tmp_path, count)
        tab.screenshot(folder / f"page-{count}-{name}.png")
        choose(tab, 2)
        for view in ("graph", "list", "panel"):
            tab.js(f"document.querySelector('[data-view={view}]').click()")
            assert tab.js("document.documentElement.scrollWidth") == width
            assert tab.js("[...document.querySelectorAll('button, input, h1, h2, dd, .row')].filter(each => { const box = each.getBoundingClientRect();"
                          f" return box.width && (box.right > {width} + 1 || box.left < -1) }}).map(each => each.outerHTML)") == []
        tab.screenshot(folder / f"page-{count}-{name}-details.png")
    background = tab.js("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 24, 29)") == dark
    assert tab.failures == []
    tab.close()


def test_the_switch_overrides_what_the_system_prefers(tab: Tab, tmp_path: Path) -> None:
    opened(tab, tmp_path, 3)
    colours = []
    for _press in range(3):
        colours.append(tab.js("getComputedStyle(document.body).backgroundColor"))
        tab.js("document.getElementById('theme').click()")
    assert colours == ["rgb(255, 255, 255)", "rgb(255, 255, 255)", "rgb(20, 24, 29)"]
    assert tab.js("document.getElementById('theme').getAttribute('aria-label')") == "Colours: automatic"


def test_everything_that_can_be_pressed_has_a_name_and_text_has_contrast(tab: Tab, tmp_path: Path) -> None:
    opened(tab, tmp_path, 30)
    choose(tab, 3)
    assert tab.js("[...document.querySelectorAll('button, input, canvas, [role]')].filter(each => !(each.textContent.trim() || each.getAttribute('aria-label'))"
                  " && !['presentation', 'status'].includes(each.getAttribute('role'))).map(each => each.outerHTML)") == []
    contrast = """
    (() => {
      const light = part => { part /= 255; return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; };
      const value = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number); return 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b); };
      const ground = each => { for (; each; each = each.parentElement) { const c = getComputedStyle(each).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return c; } };
      return [...document.querySelectorAll("h1, h2, h3, p, dt, dd, button, .item span, .item bdi, .role, .said, .badge")]
        .filter(each => each.textContent.trim() && each.getBoundingClientRect().width).filter(each => {
          const [a, b] = [value(getComputedStyle(each).color), value(ground(each))].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05) < 4.5;
        }).map(each => each.outerHTML);
    })()
    """
    assert tab.js(contrast) == []
    tab.dark(True)
    assert tab.js(contrast) == []


def test_it_prints(tab: Tab, tmp_path: Path) -> None:
    opened(tab, tmp_path, 30)
    choose(tab, 3)
    assert tab.pdf().startswith(b"%PDF")


def test_pending_sessions_say_so(tab: Tab, tmp_path: Path) -> None:
    nodes = opened(tab, tmp_path, 20)
    place = next(at for at, node in enumerate(nodes) if node.status == "pending")
    assert "pending when this file was made: more rows may have followed" in choose(tab, place + 1)
    assert tab.js("document.querySelector('#panel .badge').textContent") == "pending"
