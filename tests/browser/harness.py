"""Looks at a display in a real browser: nothing it holds may run, nothing may leave, and all of it must be there to read."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterable
from pathlib import Path

from rath.display.text import clean
from tests.browser.chrome import Chrome, Tab
from tests.browser.payloads import HOST

# Unfolds what is folded, wakes what waits for a reader, and returns all text of the page.
READ_ALL = """
(async () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const node of document.querySelectorAll("body *")) {
    if (node.focus && node.tabIndex >= 0) node.focus({ preventScroll: true });
    node.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    node.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  }
  await new Promise(done => setTimeout(done, 60));
  return document.body.textContent;
})()
"""


class Beacon:
    """What every name of the browser's world resolves to: it keeps the first bytes of whatever connects."""

    def __init__(self) -> None:
        received = self._received = list[bytes]()

        class Keep(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(2)
                try:
                    received.append(self.request.recv(4096))
                    self.request.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\nAccess-Control-Allow-Origin: *\r\n\r\n")
                except OSError:
                    pass

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Keep)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def hits(self) -> list[bytes]:
        """What reached it from a page; a browser's own errands are not meant."""
        return [first for first in list(self._received) if HOST.encode() in first or b"rath-hit" in first]

    def forget(self) -> None:
        """Begin anew."""
        self._received.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def squeezed(text: str) -> str:
    """``text`` without white space, which a browser lays out as it likes."""
    return "".join(text.split())


def seen_as(payload: str, limit: int = 60) -> str:
    """How a display shows the beginning of ``payload``: with its control characters visible; long ones may be cut."""
    return squeezed(clean(payload[:limit]))


def assert_untouched(tab: Tab, beacon: Beacon) -> None:
    """No script of a text ran, no dialog opened, nothing was asked of anybody, and the page's policy had nothing to stop."""
    found = {
        "ran": tab.ran(),
        "asked for": tab.requests,
        "tried": tab.refused(),
        "complained of": tab.failures,
        "reached the network": beacon.hits(),
    }
    for what, which in found.items():
        assert not which, f"{what}: {which[:5]}"


def assert_shown(text: str, payloads: Iterable[str], limit: int = 60) -> None:
    """Every payload stands in ``text``, as text."""
    there = squeezed(text)
    missing = [payload for payload in payloads if seen_as(payload, limit) not in there]
    assert not missing, f"{len(missing)} not shown, e.g. {missing[0][:200]!r}"


def assert_hostile_text_is_shown(
    chrome: Chrome, beacon: Beacon, html: str, expected: Iterable[str], folder: Path, *, read: str = READ_ALL, limit: int = 60
) -> None:
    """Open ``html`` from a file, read it with ``read`` (JavaScript), and find every text of ``expected`` in it, harmless.

    Args:
        limit: how many characters of each text the display shows at least.
    """
    path = folder / "display.html"
    # A lone surrogate that a display lets through is its fault: this raises.
    path.write_text(html if "<html" in html else f"<!doctype html><meta charset=utf-8><body>{html}", encoding="utf-8")
    beacon.forget()
    tab = chrome.tab()
    try:
        # Long, because a machine that does much else is slow, not wrong.
        tab.open(path, timeout_s=100)
        text = tab.js(read, timeout_s=100)
        assert_untouched(tab, beacon)
        assert_shown(text, expected, limit)
    finally:
        tab.close()
