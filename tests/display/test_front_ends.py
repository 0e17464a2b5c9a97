"""What front ends of notebooks do to a display: JupyterLab sanitises it, MathJax looks for formulas, headings are collected."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

import rath
from rath.backend.calls import WorkspaceDiff
from rath.display.table import table_html
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.session import Session
from tests.display.support import assert_harmless

# What JupyterLab 4 lets through of a notebook that is not trusted, as far as displays have it. The text of what it takes
# away stays, but for style sheets.
KEPT = {
    *("code", "dd", "del", "details", "div", "dl", "dt", "h1", "h2", "h3", "input", "ins", "label", "p", "pre", "section"),
    *("span", "summary", "table", "tbody", "td", "tr", "br"),
}
BLOCKS = {"details", "div", "dl", "dt", "dd", "h1", "h2", "h3", "p", "pre", "section", "summary", "table", "tr", "br"}


class Sanitised(HTMLParser):
    """The text that a reader sees of sanitised HTML, a line for each block."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._open: list[tuple[str, bool, bool]] = []
        self.controls = 0
        self.feed(html)
        self.close()

    @property
    def lines(self) -> list[str]:
        return [line for line in "".join(self.parts).split("\n") if line.strip()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        above_hidden, above_spaced = self._open[-1][1:] if self._open else (False, False)
        kept = dict(attrs) if tag in KEPT else {}
        style = kept.get("style") or ""
        hidden = above_hidden or tag == "style" or "display:none" in style
        spaced = above_spaced or tag == "pre" or "white-space:pre-wrap" in style
        if not hidden:
            self.controls += tag == "input"
            self.parts += ["\n"] if tag in BLOCKS else []
        if tag not in ("br", "input"):
            self._open.append((tag, hidden, spaced))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()
        self.parts += ["\n"] if tag in BLOCKS else []

    def handle_data(self, data: str) -> None:
        _tag, hidden, spaced = self._open[-1]
        if not hidden:
            self.parts.append(data if spaced else re.sub(r"\s+", " ", data))


def two_sessions() -> tuple[Session, Session]:
    first = Session.from_user_message("one\n\ntwo, for $5 or $6")
    return first, first.fork().user("three")


def shown() -> dict[str, str]:
    first, second = two_sessions()
    return {
        "session": first._repr_html_(),
        "rows": first.chunk_table._repr_html_(),
        "graph": rath.lineage([second])._repr_html_(),
        "diff": rath.diff(first, second)._repr_html_(),
        "workspace": WorkspaceDiff("--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n context\n-old\n \n+new\n", ("x",))._repr_html_(),
    }


@pytest.mark.parametrize("which", ["session", "rows", "graph", "diff", "workspace"])
def test_mathjax_makes_no_formula_of_what_is_said_and_headings_stay_out_of_the_table_of_contents(
    which: str,
) -> None:
    html = shown()[which]
    page = assert_harmless(html)
    # Those of MathJax 2, in pages made by nbconvert, and of MathJax 3, in JupyterLab: on the element around everything.
    root = html[: html.index(">")]
    assert {"rath", "tex2jax_ignore", "mathjax_ignore"} <= set(root.split('class="')[1].split('"')[0].split())
    headings = [tag for tag in page.tags if tag in ("h1", "h2", "h3")]
    assert html.count('<h3 class="tocSkip">') == len(headings)
    assert headings or which == "diff"


def test_mathjax_makes_no_formula_of_a_table_of_logs() -> None:
    html = table_html("logs", ["operator", "model"], [["for $5", "or $6"]])
    assert html.startswith('<div class="tex2jax_ignore mathjax_ignore">')
    assert html.endswith("</div>")


def test_a_graph_in_a_notebook_that_is_not_trusted_is_a_tree_of_text() -> None:
    first, second = two_sessions()
    seen = Sanitised(rath.lineage([second])._repr_html_())
    tree = str(rath.lineage([second])).splitlines()
    assert seen.controls == 0
    title, total, note, *rest = (line.strip() for line in seen.lines)
    assert (title, total) == ("Lineage", "3 sessions")
    assert "trusted notebook" in note
    assert rest == [line.strip() for line in tree]
    assert first.id.hex[:8] in rest[0]


@pytest.mark.slow
def test_a_graph_of_long_names_stays_below_a_megabyte_with_its_tree() -> None:
    sessions = [Session(ChunkTable((user_text_chunk("x"),)), lineage_operator="W" * 5_000) for _ in range(400)]
    html = rath.lineage(sessions)._repr_html_()
    assert len(html.encode()) < 1_000_000
    assert len("".join(Sanitised(html).lines)) < 40_000


def test_lines_of_a_diff_and_of_a_row_stay_apart_in_a_notebook_that_is_not_trusted() -> None:
    found = shown()
    lines = ["--- a/x", "+++ b/x", "@@ -1,3 +1,3 @@", " context", "-old", "+new"]
    assert Sanitised(found["workspace"]).lines[-6:] == lines
    for which in ("session", "rows", "diff"):
        said = Sanitised(found[which]).lines
        assert said[said.index("one") + 1] == "two, for $5 or $6"


def test_what_went_and_what_came_is_told_apart_without_a_style_sheet() -> None:
    left, right = (Session(ChunkTable((user_text_chunk(f"a long text with {word} word in it"),))) for word in ("one", "another"))
    html = rath.diff(left, right)._repr_html_()
    assert '<del class="sd-gone">one</del><ins class="sd-came">another</ins>' in html
    rows = html[html.index("<table") : html.index("</table>")].split("<tr>")
    assert [row.count("<td") for row in rows[1:]] == [3] * (len(rows) - 1)
