"""The notebook displays in a browser: they unfold without scripts, fit every width, and obey nothing that they show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import rath
from rath.backend.calls import WorkspaceDiff
from rath.display import watching
from rath.display.graph_html import graph_cell, graph_html
from rath.display.html import chunk_table_html, session_html
from rath.display.session_diff_html import session_diff_html, session_diff_page
from rath.display.svg import lineage_svg
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode
from rath.session.graph.model import SessionGraph
from rath.session.session import Session
from tests.browser.chrome import Chrome, Tab
from tests.browser.corpus import hostile_nodes, hostile_tables
from tests.browser.harness import READ_ALL, Beacon, assert_hostile_text_is_shown, assert_shown, assert_untouched
from tests.browser.payloads import ALIVE, PAYLOADS
from tests.display.test_graph_html import fan

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = [text for text in PAYLOADS if len(text) < 4000]
PARTS = [PAYLOADS[at : at + 120] for at in range(0, len(PAYLOADS), 120)]
PLACES = list(hostile_tables(["x"]))
WIDGET_JS = (Path(watching.__file__).parent / "widget_assets" / "lineage.js").read_text(encoding="utf-8")


def named(payloads: Any) -> list[LineageNode]:
    return [replace(node, roles=node.roles[: len(node.parents)]) for node in hostile_nodes(payloads)]


def small(part: Any) -> list[str]:
    return [text for text in part if len(text) < 4000]


def as_json(part: Any) -> list[str]:
    """As JSON spells them: what is a quote or a backslash in it has one more before it."""
    return [json.dumps(text, ensure_ascii=False)[1:-1] for text in small(part) if "\\" not in repr(text)]


@pytest.fixture
def page(chrome: Chrome, beacon: Beacon, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """Opens what a display made in a tab of a given width."""
    tabs: list[Tab] = []

    def opened(body: str, *, width: int = 1000, dark: bool = False, attributes: str = "") -> Tab:
        beacon.forget()
        path = tmp_path / f"page{len(tabs)}.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><body {attributes} style='margin:0'>{body}", encoding="utf-8")
        tabs.append(chrome.tab(width=width, height=1000, dark=dark))
        tabs[-1].open(path)
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.close()


# -- hostile text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_what_rows_say_is_text_in_a_session_and_in_a_table(chrome: Chrome, beacon: Beacon, place: str, tmp_path: Path) -> None:
    expected = as_json if place in ("json arguments", "odd") else small
    tables = [hostile_tables(small(part))[place] for part in PARTS]
    cells = [session_html(Session(table)) if number % 2 else chunk_table_html(table) for number, table in enumerate(tables)]
    assert_hostile_text_is_shown(chrome, beacon, "".join(cells), expected(SMALL), tmp_path, limit=40)


def test_rows_too_large_to_show_are_cut_and_harmless(chrome: Chrome, beacon: Beacon, tmp_path: Path) -> None:
    tables = hostile_tables([text for text in PAYLOADS if len(text) >= 4000]).values()
    assert_hostile_text_is_shown(chrome, beacon, "".join(map(chunk_table_html, tables)), [], tmp_path)


@pytest.mark.parametrize("at", range(len(PARTS)))
def test_what_sessions_are_called_is_text_in_a_graph(chrome: Chrome, beacon: Beacon, at: int, tmp_path: Path) -> None:
    nodes = named(PARTS[at])
    graph = SessionGraph(nodes)
    assert_hostile_text_is_shown(chrome, beacon, graph_html(graph), small(PARTS[at]), tmp_path, limit=40)
    assert_hostile_text_is_shown(chrome, beacon, lineage_svg(nodes), [text for text in small(PARTS[at]) if "\x1b" not in text], tmp_path, limit=15)
    for form in graph._repr_mimebundle_().values():
        assert isinstance(form, str)


@pytest.mark.parametrize("place", PLACES)
def test_transcripts_inside_a_graph_are_text(chrome: Chrome, beacon: Beacon, place: str, tmp_path: Path) -> None:
    expected = as_json if place in ("json arguments", "odd") else small
    tables = [hostile_tables(small(PAYLOADS[at : at + 20]))[place] for at in range(0, len(PAYLOADS), 20)]
    sessions = [Session(table, lineage_operator=PAYLOADS[at]) for at, table in enumerate(tables)]
    cells = [graph_html(rath.lineage(sessions[:20])), graph_html(rath.lineage(sessions[20:]))]
    assert_hostile_text_is_shown(chrome, beacon, "".join(cells), expected(PAYLOADS[:400])[:60], tmp_path, limit=40)


@pytest.mark.parametrize("place", PLACES)
def test_sessions_compared_are_text(chrome: Chrome, beacon: Beacon, place: str, tmp_path: Path) -> None:
    half = len(PAYLOADS) // 2
    same = user_text_chunk("the same")
    begun = Session(ChunkTable((same,)))
    left, right = (Session(ChunkTable((same, *hostile_tables(part)[place].rows))) for part in (PAYLOADS[:half], PAYLOADS[half:]))
    edited = Session(ChunkTable((same, *hostile_tables([f"{text} more" for text in PAYLOADS[:half]])[place].rows)))
    # What went stands whole; what was edited is shown word by word, where a text is not found as it was.
    expected = as_json if place in ("json arguments", "odd") else small
    for went, part in ((left, PAYLOADS[:half]), (right, PAYLOADS[half:])):
        assert_hostile_text_is_shown(chrome, beacon, session_diff_page(rath.diff(went, begun)), expected(part), tmp_path, limit=40)
    # A parser puts what follows a page into its body.
    shown = session_diff_page(rath.diff(left, edited)) + session_diff_html(rath.diff(left, right))
    assert "sd-e" in shown.partition("</style>")[2] or place in ("tool name", "result", "odd")
    assert_hostile_text_is_shown(chrome, beacon, shown, [], tmp_path)


def test_files_and_lines_of_a_workspace_are_text(chrome: Chrome, beacon: Beacon, tmp_path: Path) -> None:
    for part in PARTS:
        paths = tuple(small(part))
        lines = "".join(f"+{text}\n" for text in small(part))
        html = WorkspaceDiff(f"--- a/x\n+++ b/x\n@@ -0,0 +1,999999 @@\n{lines}", paths, paths, paths, paths)._repr_html_()
        one_line = [text for text in small(part) if "\n" not in text and "\r" not in text]
        assert_hostile_text_is_shown(chrome, beacon, html, one_line, tmp_path, limit=40)


# -- the widget ---------------------------------------------------------------------------------------------------------


def as_widget(html: str) -> str:
    """A page that shows ``html`` as a notebook's widget would, with a model that remembers what it is told."""
    state = json.dumps({"html": html, "state": "runs go on"}).replace("<", "\\u003c")
    script = WIDGET_JS.replace("export default { render };", "")
    return (
        f"<div id=el></div><script type=module>{script}\n"
        f"const state = {state}, heard = {{}};\n"
        "window.model = { get: key => state[key], set: (key, value) => { state[key] = value }, save_changes: () => window.saved = state.chosen,"
        " on: (what, then) => { heard[what] = then }, off() {} };\n"
        "window.push = html => { state.html = html; heard['change:html']() };\n"
        "render({ model: window.model, el: document.getElementById('el') }); window.shown = true</script>"
    )


@pytest.mark.parametrize("at", range(len(PARTS)))
def test_what_a_widget_is_given_is_text(page: Callable[..., Tab], beacon: Beacon, at: int) -> None:
    html = graph_cell(SessionGraph(named(PARTS[at])), name="w")
    tab = page(as_widget(html))
    tab.wait("window.shown")
    text = tab.js("document.querySelectorAll('details').forEach(d => d.open = true), document.getElementById('el').textContent")
    tab.js(READ_ALL, timeout_s=60)
    assert_untouched(tab, beacon)
    assert_shown(text, small(PARTS[at]), 40)


def test_a_widget_given_markup_leaves_it_out(page: Callable[..., Tab], beacon: Beacon) -> None:
    """Were a text ever to reach it as it is, it would do nothing either."""
    tab = page(as_widget(f"<p>before</p>{ALIVE[0]}"))
    tab.wait("window.shown")
    left = "document.querySelectorAll('#el script, #el img, #el iframe, #el link, #el meta, #el a, #el [onload]').length"
    for payload in [*ALIVE, *SMALL[::5]]:
        tab.js(f"window.push({json.dumps(f'<p>before</p>{payload}')})")
        assert tab.js("document.getElementById('el').textContent.startsWith('before')"), payload
        assert tab.js(left) == 0, payload
    tab.js(READ_ALL)
    assert_untouched(tab, beacon)


def test_a_widget_tells_what_was_chosen_and_keeps_it_and_its_place_when_drawn_anew(page: Callable[..., Tab]) -> None:
    sessions = [Session.from_user_message(f"message {number}") for number in range(60)]
    graph = rath.lineage(sessions)
    tab = page(as_widget(graph_cell(graph, name="w")))
    tab.wait("window.shown")
    tab.js("document.querySelectorAll('.graph label')[57].click()")
    assert UUID(tab.js("window.saved")) == graph.nodes[57].id
    tab.js("document.querySelector('.graph').scrollTop = 100")
    tab.js(f"window.push({json.dumps(graph_cell(graph, name='w'))})")
    assert tab.js("document.querySelector('.rg-pick:checked').id") == "wv1-57"
    assert tab.js("document.querySelector('.graph').scrollTop") == 100
    assert tab.js("document.querySelectorAll('.rg-e:not([style])').length") == 60
    assert tab.js("[...document.querySelectorAll('.rg-e')].filter(e => e.offsetHeight).length") == 1
    tab.js("document.querySelectorAll('label[for=wv1-x]')[57].click()")
    assert tab.js("window.saved") == ""


def test_two_views_of_a_widget_unfold_what_each_was_asked_for(page: Callable[..., Tab]) -> None:
    graph = rath.lineage([Session.from_user_message(f"message {number}") for number in range(3)])
    html = graph_cell(graph, name="rgaff0c1a2b3")
    tab = page(as_widget(html).replace("window.shown = true", "window.both()").replace(
        "render({ model: window.model,",
        "window.both = () => { const other = document.body.appendChild(document.createElement('div')); other.id = 'other';"
        " render({ model: { ...window.model, on() {} }, el: other }); window.shown = true };\nrender({ model: window.model,",
        1,
    ))
    tab.wait("window.shown")
    ids = tab.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    tab.js("document.querySelectorAll('#el .graph label')[0].click(), document.querySelectorAll('#other .graph label')[2].click()")
    in_view = "[...document.querySelectorAll('{} .rg-e')].map(e => e.offsetHeight > 0)"
    assert tab.js(in_view.format("#el")) == [True, False, False]
    assert tab.js(in_view.format("#other")) == [False, False, True]
    assert tab.js("getComputedStyle(document.querySelectorAll('#other .graph .b')[2]).strokeWidth") == "4px"
    chosen = json.dumps(graph_cell(graph, name="rgaff0c1a2b3", chosen=graph.nodes[1].id))
    tab.js(f"window.push({chosen})")
    assert tab.js(in_view.format("#el")) == [True, False, False]
    assert tab.js(in_view.format("#other")) == [False, False, True]


# -- use ----------------------------------------------------------------------------------------------------------------


def click(tab: Tab, selector: str) -> None:
    x, y = tab.js(f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] }})()")
    tab.click(x, y)


def in_sight(tab: Tab) -> str:
    """What is shown of the panels."""
    return str(tab.js("[...document.querySelectorAll('.rg-e')].filter(e => e.offsetHeight).map(e => e.innerText).join('|')"))


def test_a_click_on_a_node_unfolds_its_transcript_where_no_script_runs(page: Callable[..., Tab]) -> None:
    sessions = [Session.from_user_message(f"message {number}") for number in range(3)]
    policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    tab = page(policy + graph_cell(rath.lineage(sessions), name="g"))
    assert in_sight(tab) == ""
    click(tab, ".graph g g label, .graph g label")
    first = in_sight(tab)
    assert first.count("message") == 1
    assert tab.js("getComputedStyle(document.querySelector('.g-0-n .b')).strokeWidth") == "4px"
    click(tab, ".g-2-n label")
    second = in_sight(tab)
    assert second.count("message") == 1
    assert second != first
    click(tab, "#g-2 + section label[for=g-x]")
    assert in_sight(tab) == ""
    click(tab, "label[for=g-all]")
    assert in_sight(tab).count("1 row") >= 3
    assert tab.ran() == []


def test_the_arrow_keys_go_from_panel_to_panel(page: Callable[..., Tab]) -> None:
    sessions = [Session.from_user_message(f"message {number}") for number in range(3)]
    tab = page(graph_cell(rath.lineage(sessions), name="g"))
    tab.js("document.querySelector('#g-x').focus()")
    seen = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "ArrowUp"):
        tab.key(key)
        chosen = tab.js("document.querySelector('.rg-pick[type=radio]:checked').id")
        assert tab.js("document.activeElement.id") == chosen
        seen.append((chosen, in_sight(tab).count("message")))
    assert seen == [("g-0", 1), ("g-1", 1), ("g-0", 1), ("g-x", 0)]


DISPLAYS = {
    "graph 3": lambda: graph_html(SessionGraph(fan(1))),
    "graph 30": lambda: graph_html(SessionGraph(fan(14))),
    "graph 200": lambda: graph_html(SessionGraph(fan(99))),
    "session": lambda: session_html(Session(hostile_tables(SMALL[:60])["command"])),
    "rows": lambda: chunk_table_html(hostile_tables(["W" * 500, "日" * 500])["said"]),
    "diff": lambda: session_diff_html(rath.diff(*(Session(hostile_tables(p)["said"]) for p in (["W" * 900, "a"], ["b", "V" * 900])))),
    "workspace": lambda: WorkspaceDiff(f"--- a/x\n+++ b/x\n@@ -0,0 +1 @@\n+{'x' * 2000}\n", ("p" * 400,))._repr_html_(),
}


@pytest.mark.parametrize("width", [320, 1600])
@pytest.mark.parametrize("display", DISPLAYS)
def test_a_display_fits_its_page_and_a_drawing_scrolls_in_its_own_box(page: Callable[..., Tab], display: str, width: int) -> None:
    tab = page(DISPLAYS[display](), width=width)
    tab.js("document.querySelectorAll('details').forEach(d => d.open = true), document.querySelector('.rg-all')?.click()")
    assert tab.js("document.documentElement.scrollWidth") <= width
    if display == "graph 200":
        assert tab.js("document.querySelector('.graph').scrollHeight > document.querySelector('.graph').clientHeight")
        assert tab.js("document.querySelector('.graph').clientHeight") < 800
        if width == 320:
            assert tab.js("document.querySelector('.graph').scrollWidth > document.querySelector('.graph').clientWidth")
    if display.startswith("graph") and width == 1600:
        # Small text is at least 9 px high on the screen.
        assert tab.js("(() => { const s = document.querySelector('.graph svg'); return s.getBoundingClientRect().width / s.viewBox.baseVal.width })()") >= 0.84


def test_a_graph_is_a_drawing_and_without_its_style_sheets_a_tree_of_text(page: Callable[..., Tab]) -> None:
    tab = page(graph_html(SessionGraph(fan(3))))
    height = "document.querySelector('{}').offsetHeight"
    assert tab.js(height.format(".rg-live")) > 0
    assert tab.js(height.format(".rg-plain")) == 0
    tab.js("document.querySelectorAll('style').forEach(sheet => sheet.remove())")
    assert tab.js(height.format(".rg-live")) == 0
    assert tab.js(height.format(".rg-plain")) > 0


def test_a_diff_is_copied_line_by_line_with_and_without_a_style_sheet(page: Callable[..., Tab]) -> None:
    text = "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-old\n \n+new"
    tab = page(WorkspaceDiff(f"{text}\n", ("x",))._repr_html_())
    copied = "document.querySelector('pre.diff').innerText.trimEnd()"
    assert tab.js(copied) == text
    tab.js("document.querySelectorAll('style').forEach(sheet => sheet.remove())")
    assert tab.js(copied) == text


def test_what_a_tool_gave_is_framed_and_its_words_are_whole_whatever_a_notebook_says_of_its_outputs(page: Callable[..., Tab]) -> None:
    theirs = "<style>body .outputs pre{border:none;padding:0;word-break:break-all}</style>"
    tab = page(f"{theirs}<div class=outputs>{session_html(Session(hostile_tables(['echo hello'])['command']))}</div>")
    style = "(style => [style.borderTopWidth, style.paddingLeft, style.wordBreak])(getComputedStyle(document.querySelector('pre')))"
    assert tab.js(style) == ["1px", "10px", "normal"]


FRONTS = {
    "system light": ("", False, False),
    "system dark": ("", True, True),
    "JupyterLab light, on a dark system": ('data-jp-theme-light="true"', True, False),
    "JupyterLab dark": ('data-jp-theme-light="false"', False, True),
    "VS Code light, on a dark system": ('class="vscode-light"', True, False),
    "VS Code dark": ('class="vscode-dark"', False, True),
    "Sphinx dark": ('data-theme="dark"', False, True),
}
# Of every text in sight that stands on a ground of its own: the contrast of WCAG 2.
CONTRAST = """
(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05) };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const box = at instanceof SVGElement && at.parentElement?.querySelector(":scope > .b");
      const found = numbers(box ? getComputedStyle(box).fill : getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("text, h3, p, code, pre, .soft, .badge, .role, .said, .rg-b, .error, .d-added, .d-removed, .sd-tag")]
    .filter(each => each.textContent.trim() && each.getClientRects().length)
    .map(each => [ratio(numbers(each instanceof SVGElement ? getComputedStyle(each).fill : getComputedStyle(each).color), ground(each)),
      each.textContent.slice(0, 30)])
    .sort((a, b) => a[0] - b[0])[0];
})()
"""


@pytest.mark.parametrize("front", FRONTS)
def test_a_display_is_light_or_dark_as_its_front_end_is_and_readable(page: Callable[..., Tab], front: str) -> None:
    attributes, system_is_dark, dark = FRONTS[front]
    kinds = [(kind, status) for kind in LineageKind for status in ("completed", "failed", "pending", "running", "cancelled", "unknown")]
    nodes = [LineageNode(UUID(int=at + 1), kind=kind, status=status, rows=1, label="x", cost_usd=1.0) for at, (kind, status) in enumerate(kinds)]
    shown = [
        graph_html(SessionGraph(nodes)),
        session_html(Session(hostile_tables(["said"])["said"])),
        DISPLAYS["diff"](),
        DISPLAYS["workspace"](),
    ]
    tab = page("".join(shown), dark=system_is_dark, attributes=attributes)
    tab.js("document.querySelectorAll('details').forEach(d => d.open = true), document.querySelector('.rg-all').click()")
    red = int(tab.js("getComputedStyle(document.querySelector('.rath')).backgroundColor.match(/\\d+/)[0]"))
    assert (red < 60) is dark
    fill = int(tab.js("getComputedStyle(document.querySelector('.rl .b')).fill.match(/\\d+/)[0]"))
    assert (fill < 100) is dark
    least, text = tab.js(CONTRAST)
    assert least >= 4.5, text


def test_a_display_takes_ground_and_text_from_a_theme_that_names_them(page: Callable[..., Tab]) -> None:
    # JupyterLab's dark notebooks are darker than its panels: a cell has the ground of the notebook.
    style = "<style>body{--jp-layout-color0:rgb(10,20,30);--jp-layout-color1:rgb(40,50,60);--jp-content-font-color1:rgb(200,210,220)}</style>"
    tab = page(style + graph_html(SessionGraph(fan(1))), attributes='data-jp-theme-light="false"')
    assert tab.js("getComputedStyle(document.querySelector('.rath')).backgroundColor") == "rgb(10, 20, 30)"
    assert tab.js("getComputedStyle(document.querySelector('.rath')).color") == "rgb(200, 210, 220)"
