"""Draws the figures of the concept pages: ``python docs/figures/draw.py`` writes the SVG files here, and a style sheet.

As images (on a code host) they follow the system's colours; in the site they are part of the page and follow its theme, by
the style sheet.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
# Hues of Okabe and Ito's palette, which colour-blind people can tell apart; no meaning hangs on the hue alone.
LIGHT = "--paper:#fff;--ink:#1c2530;--soft:#5b6878;--line:#8b98a8;--fill:#f4f6f9;--blue:#0b5cad;--blue-fill:#e4effa;\
--orange:#9a5200;--orange-fill:#fdf0dc;--green:#00704f;--green-fill:#e0f4ec;--red:#b3261e;--red-fill:#fce9e7"
DARK = "--paper:#15191f;--ink:#e6eaf0;--soft:#a3afbe;--line:#6f7c8c;--fill:#20262e;--blue:#7cb8f2;--blue-fill:#16304a;\
--orange:#f0b35a;--orange-fill:#3d2a0d;--green:#58c9a3;--green-fill:#10372b;--red:#ff9a90;--red-fill:#4a1c19"
STYLE = f"""
.drawn{{{LIGHT};font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:13px}}
@media (prefers-color-scheme:dark){{.drawn{{{DARK}}}}}
.drawn .paper{{fill:var(--paper)}}
.drawn text{{fill:var(--ink)}}
.drawn .code{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:12px}}
.drawn .soft{{fill:var(--soft)}}
.drawn .small{{font-size:12px}}
.drawn .strong{{font-weight:600}}
.drawn .middle{{text-anchor:middle}}
.drawn .end{{text-anchor:end}}
.drawn .box{{fill:var(--fill);stroke:var(--line);stroke-width:1.2}}
.drawn .blue{{fill:var(--blue-fill);stroke:var(--blue)}}
.drawn .orange{{fill:var(--orange-fill);stroke:var(--orange)}}
.drawn .green{{fill:var(--green-fill);stroke:var(--green)}}
.drawn .red{{fill:var(--red-fill);stroke:var(--red)}}
.drawn .dashed{{stroke-dasharray:4 3}}
.drawn .hollow{{fill:none}}
.drawn .edge{{fill:none;stroke:var(--line);stroke-width:1.5}}
.drawn .tip{{fill:var(--line)}}
.drawn text.t-blue{{fill:var(--blue)}}
.drawn text.t-orange{{fill:var(--orange)}}
.drawn text.t-green{{fill:var(--green)}}
.drawn text.t-red{{fill:var(--red)}}
"""


class Drawing:
    """One figure, of ``width`` by ``height`` units; ``says`` is what somebody hears who cannot see it."""

    def __init__(self, name: str, width: int, height: int, title: str, says: str) -> None:
        self.name = name
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="drawn" role="img" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" aria-labelledby="{name}-title {name}-says">\n'
            f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-says">{escape(says)}</desc>\n'
            f"<style>{STYLE}</style>\n"
            f'<defs><marker id="{name}-tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path class="tip" d="M0 0 10 5 0 10z"/></marker></defs>\n'
            f'<rect class="paper" width="{width}" height="{height}" rx="8"/>'
        ]

    def text(self, x: float, y: float, words: str, look: str = "") -> None:
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{look}" xml:space="preserve">{escape(words)}</text>')

    def box(
        self, x: float, y: float, width: float, height: float, look: str = "", lines: tuple[str, ...] = (), words: str = ""
    ) -> None:
        """A box; ``lines`` stand in its middle, ``words`` says how the first of them looks."""
        self._parts.append(
            f'<rect class="box {look}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'
        )
        first = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
        for row, line in enumerate(lines):
            self.text(x + width / 2, first + 16 * row, line, f"middle {words if row == 0 else 'small soft'}")

    def edge(self, path: str, look: str = "", ends: bool = True) -> None:
        tip = f' marker-end="url(#{self.name}-tip)"' if ends else ""
        self._parts.append(f'<path class="edge {look}" d="{path}"{tip}/>')

    def svg(self) -> str:
        return "\n".join([*self._parts, "</svg>\n"])


def overview() -> Drawing:
    d = Drawing(
        "overview", 720, 268, "How rath works",
        "A script calls operators, which return pending sessions at once. A background engine runs turns: it asks"
        " models and calls tools in sandboxes. What happens is one stream of events, which the log on disk and "
        "readers follow.",
    )
    d.text(24, 30, "your script", "strong")
    d.box(16, 42, 216, 150)
    script = ("task = Session.from_user…", "first = loop(task, agent)", "left = loop(first, …)", "right = loop(first, …)")
    for row, line in enumerate(script):
        d.text(28, 68 + 22 * row, line, "code")
    d.text(28, 178, "each call returns at once", "small soft")
    d.text(300, 30, "the engine", "strong")
    d.box(292, 42, 196, 150)
    d.box(312, 60, 156, 40, "blue", ("the turn machine",))
    d.box(312, 128, 156, 40, "", ("ready runs overlap",))
    d.edge("M390 128 V103")
    d.edge("M232 82 H289")
    d.text(260, 74, "nodes", "small soft middle")
    d.edge("M292 160 H235")
    d.text(263, 152, "rows", "small soft middle")
    d.text(556, 30, "the outside", "strong")
    for row, line in enumerate(("models", "sandboxes, tools", "the log on disk", "events, displays")):
        d.box(548, 42 + 40 * row, 156, 30, "green" if row < 2 else "orange", (line,))
    d.edge("M468 74 H500 V57 H545")
    d.edge("M468 86 H500 V97 H545")
    d.edge("M488 150 H516 V137 H545")
    d.edge("M488 150 H516 V177 H545")
    d.text(24, 226, "Reading rows waits for the run that makes them; nothing else does.", "soft")
    d.text(24, 246, "Data moves one way: what stands on the right never changes a run on the left.", "soft")
    return d


def rows() -> Drawing:
    d = Drawing(
        "rows", 720, 292, "Sessions share rows",
        "A session of three rows; appending makes a second session that shares them and adds one; a fork shares "
        "them all; merging puts the rows of two sessions one after the other.",
    )

    def table(x: float, y: float, kinds: str, own: int) -> None:
        look = {"u": "blue", "a": "green", "t": "orange"}
        for i, kind in enumerate(kinds):
            shared = i < len(kinds) - own
            d.box(x + 40 * i, y, 36, 28, look[kind] + (" dashed" if shared else ""), (kind,), "code")

    d.text(20, 32, "base", "code strong")
    table(150, 14, "uat", 3)
    d.text(282, 33, "its own rows: user, assistant, tool result", "small soft")
    d.text(20, 88, "base.user(…)", "code strong")
    table(150, 70, "uatu", 1)
    d.text(322, 89, "three shared, one new", "small soft")
    d.text(20, 144, "base.fork()", "code strong")
    table(150, 126, "uat", 0)
    d.text(282, 145, "all shared; a new id and a parent", "small soft")
    d.text(20, 200, "left.merge(right)", "code strong")
    table(150, 182, "uatuuata", 0)
    d.text(482, 201, "left's rows, then right's", "small soft")
    d.edge("M168 42 V67", "dashed")
    d.edge("M208 42 V67", "dashed")
    d.edge("M248 42 V67", "dashed")
    d.box(20, 240, 24, 18, "")
    d.text(52, 254, "stored here", "small soft")
    d.box(140, 240, 24, 18, "dashed")
    d.text(172, 254, "seen here, stored where it was made", "small soft")
    d.text(20, 280, "Each step costs the same at any length: nothing is copied.", "soft")
    return d


def timeline() -> Drawing:
    d = Drawing(
        "timeline", 720, 300, "Operators return at once, runs overlap",
        "A script makes three branches without waiting. In the engine the first loop runs; then the three "
        "branches overlap. Reading the rows of a branch waits until that branch is done.",
    )
    d.text(20, 44, "script", "strong")
    d.edge("M110 40 H704")
    d.text(704, 60, "time", "small soft end")
    for x, label in ((130, "first"), (176, "a"), (206, "b"), (236, "c")):
        d.edge(f"M{x} 34 V46", ends=False)
        d.text(x, 26, label, "code middle")
    d.text(258, 26, "pending handles, in microseconds", "small soft")
    d.box(470, 31, 150, 18, "dashed", ("gather(a, b, c) waits",), "small")
    d.text(20, 110, "engine", "strong")
    for y, x, width, look, label in (
        (92, 134, 170, "blue", "first: round 1, round 2"),
        (132, 312, 214, "green", "a: round 1, round 2"),
        (164, 312, 306, "green", "b: round 1, round 2, round 3"),
        (196, 312, 128, "green", "c: round 1"),
    ):
        d.box(x, y, width, 26, look)
        d.text(x + 8, y + 17, label, "small")
    d.edge("M130 46 V89", "dashed")
    d.edge("M304 105 H308 V145 H310", ends=False)
    d.edge("M308 145 V209 H310", ends=False)
    d.edge("M308 177 H310", ends=False)
    d.edge("M618 177 H630 V52", "dashed")
    d.text(640, 130, "the last", "small soft")
    d.text(640, 146, "one is done", "small soft")
    d.text(20, 256, "Dependants start when their input resolves: waiting costs no thread and no task.", "soft")
    d.text(20, 278, "If first fails, a, b and c fail with the same error object, and none of them starts.", "soft")
    return d


def states() -> Drawing:
    d = Drawing(
        "states", 720, 190, "The states of a handle",
        "A handle is pending until its own work starts, then running, and ends once: completed, failed or "
        "cancelled. A failed or cancelled input takes a pending handle straight to the same end.",
    )
    d.box(24, 70, 124, 44, "", ("pending",), "code")
    d.box(254, 70, 124, 44, "blue", ("running",), "code")
    d.box(548, 14, 148, 40, "green", ("completed",), "code")
    d.box(548, 72, 148, 40, "red", ("failed",), "code")
    d.box(548, 130, 148, 40, "orange", ("cancelled",), "code")
    d.edge("M148 92 H251")
    d.text(200, 84, "inputs are there", "small soft middle")
    d.edge("M378 82 C450 82 470 34 545 34")
    d.edge("M378 92 H545")
    d.text(462, 86, "an error", "small soft middle")
    d.edge("M378 104 C450 104 470 146 545 146")
    d.edge("M86 114 C86 176 300 164 545 158", "dashed")
    d.edge("M110 114 C120 150 330 140 420 124 S500 100 545 98", "dashed")
    d.text(252, 180, "an input was cancelled", "small soft middle")
    d.text(252, 132, "an input failed", "small soft middle")
    return d


def lineage() -> Drawing:
    d = Drawing(
        "lineage", 720, 330, "A lineage graph",
        "A user session and an agent session lead to a loop. Three forks of it lead to three loops, each with the"
        " agent as second parent. Two of these are merged.",
    )
    d.box(90, 16, 110, 38, "blue", ("user",), "code")
    d.box(500, 16, 110, 38, "orange", ("agent",), "code")
    d.box(262, 88, 150, 38, "green", ("loop",), "code")
    d.edge("M176 54 C200 80 230 92 259 102")
    d.text(160, 84, "user", "small soft middle")
    d.edge("M510 54 C480 84 450 94 415 103")
    d.text(452, 76, "system", "small soft middle")
    for x in (70, 262, 454):
        d.box(x + 45, 156, 60, 28, "", ("fork",), "code small")
        d.box(x, 210, 150, 38, "green", ("loop",), "code")
        d.edge(f"M{x + 75} 184 V207")
    d.edge("M300 126 C260 146 190 132 150 153")
    d.edge("M337 126 V153")
    d.edge("M374 126 C414 146 484 132 524 153")
    d.edge("M590 54 C690 100 690 200 607 224", "dashed")
    d.text(676, 92, "system", "small soft middle")
    d.text(626, 264, "every loop has this edge", "small soft middle")
    d.text(626, 280, "(one is drawn)", "small soft middle")
    d.box(166, 278, 150, 38, "", ("merge",), "code")
    d.edge("M145 248 C148 268 196 258 214 275")
    d.text(126, 274, "left", "small soft middle")
    d.edge("M337 248 C332 268 288 258 270 275")
    d.text(352, 272, "right", "small soft middle")
    d.text(340, 306, "owns no tokens: they are counted where they were used", "small soft")
    return d


def placement() -> Drawing:
    d = Drawing(
        "placement", 720, 300, "Placements and leases",
        "Three sessions derived from one another hold leases on one placement, which opens one sandbox. A fork "
        "with its own copy holds a lease on a second placement with a second sandbox, whose workspace starts as a"
        " copy of the first.",
    )
    d.text(24, 30, "session values", "strong")
    d.text(296, 30, "placements", "strong")
    d.text(520, 30, "sandboxes", "strong")
    for row, line in enumerate(('s = task.to("docker")', "next = s.user(…)", "out = loop(next, agent)")):
        y = 44 + 46 * row
        d.box(16, y, 210, 34, "blue", (line,), "code")
        d.edge(f"M226 {y + 17} C256 {y + 17} 262 107 290 107")
    d.text(238, 184, "leases", "small soft")
    d.box(293, 78, 150, 58, "", ("docker, this spec", "three holders"))
    d.edge("M443 107 H513")
    d.text(478, 98, "opens once", "small soft middle")
    d.box(516, 72, 188, 70, "green", ("container", "opens on first use,", "closes with the last lease"))
    d.box(16, 212, 210, 48, "blue", ('branch = s.fork(', '    sandbox="copy")'), "code")
    d.edge("M226 236 H290")
    d.box(293, 208, 150, 58, "", ("docker, this spec", "one holder"))
    d.edge("M443 237 H513")
    d.box(516, 202, 188, 70, "green", ("container of its own", "starts with the files as", "they were at the fork"))
    d.edge("M610 142 V199", "dashed")
    d.text(602, 176, "a copy of the files", "small soft end")
    return d


def log() -> Drawing:
    d = Drawing(
        "log", 720, 372, "A log and its verdicts",
        "The lines of a log: header, rows, a tool's intent before it runs, its result, further rows, and the "
        "trailer. With the trailer the log is complete. Cut between lines it is open, cut within a line it is "
        "torn, and changed in the middle it is damaged.",
    )
    lines = (
        ("header", "who this is, from whom it descends", "blue"),
        ("chunk", "user: Deploy the app.", ""),
        ("chunk", "assistant: calls deploy", ""),
        ("tool_intent", "on disk before the tool starts", "orange"),
        ("tool_result", "on disk as soon as it has ended", "orange"),
        ("chunk", "tool_result: done", ""),
        ("chunk", "assistant: It is deployed.", ""),
        ("trailer", "every record before it was written", "green"),
    )
    for row, (kind, says, look) in enumerate(lines):
        y = 16 + 42 * row
        d.box(16, y, 392, 32, look)
        d.text(28, y + 21, kind, "code strong")
        d.text(136, y + 21, says, "small")
        if row:
            d.edge(f"M40 {y - 10} V{y - 2}")
    d.text(424, 37, "each line's hash covers the line before", "small soft")

    def verdict(y: float, name: str, look: str, *says: str) -> None:
        d.box(500, y, 92, 26, look, (name,), "code strong")
        for row, line in enumerate(says):
            d.text(500, y + 43 + 15 * row, line, "small soft")

    verdict(58, "damaged", "red", "a line was changed, lost", "or doubled: refused")
    d.edge("M408 116 C450 116 450 71 497 71", "dashed")
    verdict(140, "torn", "orange", "the last line was cut off;", "what is before it is good")
    d.edge("M408 170 C450 170 450 153 497 153", "dashed")
    verdict(222, "open", "blue", "whole so far, without an end:", "running, failed or killed")
    d.edge("M408 263 C450 263 450 235 497 235", "dashed")
    verdict(304, "complete", "green", "it ran to its end,", "and nothing is missing")
    d.edge("M408 326 C450 326 450 317 497 317", "dashed")
    return d


FIGURES: tuple[Callable[[], Drawing], ...] = (overview, rows, timeline, states, lineage, placement, log)



def files() -> dict[Path, str]:
    """Everything that is written: path and content."""
    colours = {"light": LIGHT, "dark": DARK}
    themes = "".join(f'body[data-theme="{theme}"] .drawn{{{chosen}}}\n' for theme, chosen in colours.items())
    drawn = {HERE / f"{drawing.name}.svg": drawing.svg() for drawing in (figure() for figure in FIGURES)}
    return drawn | {HERE.parent / "_static" / "figures.css": themes}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
