"""What the tests of the displays share."""

from __future__ import annotations

import re
from html.parser import HTMLParser

# A few things that text from a model, a tool or a log may hold and a display must not obey.
HOSTILE = (
    "</pre></details><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>"
    '" onmouseover="alert(2)\' & &lt; \x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m \x9b31m \x00\x08\r \u202etxt.exe\u2066'
    " \ud800 \u2028 \ufeff \U000e0041 ]]> --> <!-- {{x}} [bold]rich[/bold] :warning:"
)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
VOID = {"meta", "br", "img", "link", "input", "hr", "base", "source"}
ALLOWED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "nav", "section", "div", "span", "p", "a", "pre", "code"),
    *("h1", "h2", "h3", "dl", "dt", "dd", "details", "summary", "del", "ins", "br", "table", "tbody", "tr", "td"),
    *("svg", "defs", "marker", "g", "path", "rect", "circle", "text", "foreignobject", "input", "label"),
}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def assert_harmless(html: str) -> Page:
    """Well formed, without scripts, handlers, control characters or references to anywhere else."""
    page = Page(html)
    assert set(page.tags) <= ALLOWED_TAGS, set(page.tags) - ALLOWED_TAGS
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "action", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
        if name == "style":
            assert "url" not in value
    for style in re.findall(r"<style>(.*?)</style>", html, re.DOTALL):
        assert "url(" not in style
        assert "@import" not in style
    assert CONTROL.search(html) is None
    html.encode()
    return page
