"""Headless Chromium, driven through a pipe: the DevTools protocol with nothing but the standard library.

Chromium started with ``--remote-debugging-pipe`` reads commands at descriptor 3 and writes answers and events at 4, each
a JSON object that ends in a NUL. So no port is open, and no WebSocket library is needed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # CI runs as root, where Chromium's own sandbox does not start
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-features=Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider",
    "--disable-gpu",
    "--disable-ipc-flooding-protection",  # a test follows more links in a second than a person
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--metrics-recording-only",
    "--mute-audio",
    "--use-mock-keychain",
)


class ChromeError(AssertionError):
    """Chromium refused a command, threw an exception, or did not answer in time."""


class Chrome:
    """One Chromium process. :meth:`tab` opens pages that share nothing with each other."""

    def __init__(self, binary: str, *, every_host_is: str | None = None) -> None:
        """``every_host_is``: ``host:port`` that every name resolves to, so that no request leaves the machine unseen."""
        self._profile = tempfile.mkdtemp(prefix="rath-chromium-")
        switches = [*_SWITCHES, f"--user-data-dir={self._profile}"]
        if every_host_is:
            switches.append(f"--host-resolver-rules=MAP * {every_host_is}")
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Away from 3 and 4, so that putting one in its place does not overwrite the other.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 16) for end in (commands, answers)]
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, ends[0], 3),
            (os.POSIX_SPAWN_DUP2, ends[1], 4),
        ]
        self._pid = os.posix_spawn(binary, [binary, *switches], dict(os.environ), file_actions=actions, setpgroup=0)
        for end in (commands, answers, *ends):
            os.close(end)
        self._news = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        self._last_id = 0
        self._ended = False
        self._reader = threading.Thread(target=self._listen, name="chromium", daemon=True)
        self._reader.start()
        self.call("Browser.getVersion", timeout_s=40)

    def call(self, method: str, *, session: str | None = None, timeout_s: float = 30, **params: Any) -> dict[str, Any]:
        """What Chromium answers to ``method``."""
        with self._news:
            self._last_id += 1
            number = self._last_id
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        with self._news:
            self._news.wait_for(lambda: number in self._answers or self._ended, timeout_s)
            answer = self._answers.pop(number, None)
        if answer is None:
            raise ChromeError(f"{method}: {'Chromium ended' if self._ended else f'no answer in {timeout_s} s'}")
        if "error" in answer:
            raise ChromeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def tab(self, *, width: int = 1280, height: int = 800, dark: bool = False) -> Tab:
        """A new page of its own context: no cookies, caches or storage of others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, context)
        self._listeners[session] = tab._on_event
        tab._begin(width, height, dark)
        return tab

    def close(self) -> None:
        """End the process and remove its profile."""
        try:
            self.call("Browser.close", timeout_s=10)
        except (ChromeError, OSError):
            pass
        self._reader.join(5)
        for end in (self._write, self._read):
            os.close(end)
        until = time.monotonic() + 10
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.killpg(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                break
            time.sleep(0.02)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _listen(self) -> None:
        held = b""
        while chunk := os.read(self._read, 1 << 20):
            held += chunk
            if b"\0" not in chunk:
                continue
            *messages, held = held.split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    with self._news:
                        self._answers[message["id"]] = message
                        self._news.notify_all()
                elif listener := self._listeners.get(message.get("sessionId", "")):
                    listener(message["method"], message["params"])
                    with self._news:
                        self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


# Runs in every frame before anything of the page: what an attack would do leaves a trace here.
_WITNESS = """
window.__ran = []; window.__refused = [];
window.pwn = what => { window.__ran.push(String(what)); };
window.alert = window.confirm = window.prompt = window.print = what => { window.__ran.push("dialog " + what); };
window.open = what => { window.__ran.push("open " + what); return null; };
document.addEventListener("securitypolicyviolation",
    event => window.__refused.push(event.violatedDirective + " " + event.blockedURI));
"""


class Tab:
    """One page.

    Attributes:
        requests: URLs that the page asked for, but for the file itself and data.
        dialogs: texts of alerts and prompts. ``failures``: errors that nobody caught, and what the console calls errors.
    """

    def __init__(self, chrome: Chrome, session: str, context: str) -> None:
        self._chrome, self._session, self._context = chrome, session, context
        self._loads = 0
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.failures: list[str] = []

    def call(self, method: str, *, timeout_s: float = 30, **params: Any) -> dict[str, Any]:
        return self._chrome.call(method, session=self._session, timeout_s=timeout_s, **params)

    def open(self, url: str | Path, *, timeout_s: float = 40) -> None:
        """Load a page, to its ``load`` event."""
        address = url.resolve().as_uri() if isinstance(url, Path) else url
        before = self._loads
        failed = self.call("Page.navigate", url=address, timeout_s=timeout_s).get("errorText")
        if failed:
            raise ChromeError(f"{address}: {failed}")
        with self._chrome._news:
            if not self._chrome._news.wait_for(lambda: self._loads > before, timeout_s):
                raise ChromeError(f"{address}: not loaded in {timeout_s} s")

    def js(self, expression: str, *, timeout_s: float = 30) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, timeout_s=timeout_s
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise ChromeError(f"{expression[:200]}: {details.get('exception', {}).get('description', details)}")
        return found["result"].get("value")

    def wait(self, condition: str, *, timeout_s: float = 20) -> None:
        """Until a JavaScript expression is true."""
        until = time.monotonic() + timeout_s
        while not self.js(condition):
            if time.monotonic() > until:
                raise ChromeError(f"not true in {timeout_s} s: {condition}")
            time.sleep(0.03)

    def key(self, key: str, *, code: str = "", modifiers: int = 0) -> None:
        """Press and release a key: ``a``, ``Enter``, ``ArrowDown``."""
        known = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        number = known.get(key, ord(key[0].upper()))
        named = {"key": key, "code": code or key, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def click(self, x: float, y: float, *, modifiers: int = 0) -> None:
        """The left button at a place of the window."""
        where = {"x": x, "y": y, "button": "left", "clickCount": 1, "modifiers": modifiers}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **where)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def dark(self, on: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """What the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def pdf(self) -> bytes:
        """What a printer gets."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def first_paint_ms(self) -> float:
        """From the start of navigation to the first contentful paint."""
        found = self.js(
            "new Promise(done => { const look = () => { const [entry] = "
            "performance.getEntriesByName('first-contentful-paint'); entry ? done(entry.startTime) : setTimeout(look, 20); };"
            " look(); })"
        )
        return float(found)

    def ran(self) -> list[str]:
        """What scripts that should not run have left behind, in this page and its frames; dialogs too."""
        return [*self.js("window.__ran || ['the witness is gone']"), *self.dialogs]

    def refused(self) -> list[str]:
        """What the page's own policy had to stop."""
        found: list[str] = self.js("window.__refused || []")
        return found

    def close(self) -> None:
        self._chrome._listeners.pop(self._session, None)
        self._chrome.call("Target.disposeBrowserContext", browserContextId=self._context)

    def _begin(self, width: int, height: int, dark: bool) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_WITNESS)
        self.resize(width, height)
        self.dark(dark)

    def _on_event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loads += 1
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not (params.get("type") == "Document" and url.startswith("file:")) and not url.startswith("data:"):
                self.requests.append(url)
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.failures.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.failures.append(params["entry"]["text"])
