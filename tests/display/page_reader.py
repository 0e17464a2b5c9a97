"""Reads a lineage page as a browser does: its data, and the transcripts packed in it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

_SCRIPT = re.compile(r'<script(?: type="([^"]*)")?(?: id="([^"]*)")?>(.*?)</script>', re.DOTALL)


class PageReader:
    """What stands in a page.

    Attributes:
        data: of the nodes.
        script, scripts: the one that runs; how many elements there are of each type.
    """

    def __init__(self, html: str) -> None:
        found = _SCRIPT.findall(html)
        self.by_id = {name: text for _type, name, text in found}
        self.types = [kind for kind, _name, _text in found]
        self.data: dict[str, Any] = json.loads(self.by_id["rath-data"])
        self.script = self.by_id[""]
        self._steps: list[int] = self._unpacked("rath-ways")
        self._rows: list[Any] = []
        for number, start in enumerate(self.data["blocks"]):
            assert len(self._rows) == start
            self._rows += self._unpacked(f"rath-block-{number}")

    @property
    def row_count(self) -> int:
        """How many different rows it holds."""
        return len(self._rows)

    @property
    def step_count(self) -> int:
        return len(self._steps)

    def text(self, column: str, node: int) -> str:
        place = self.data["nodes"][column][node]
        return "" if place < 0 else self.data["strings"][place]

    def transcript(self, node: int) -> list[Any] | None:
        """A node's rows; a number for so many left out; ``None`` where there is no transcript."""
        ways = self.data["ways"]
        if ways["count"][node] < 0:
            return None
        before: dict[int, int] = {}
        for base, start, count in zip(ways["base"], ways["start"], ways["count"], strict=True):
            if count > 0:
                before |= {start: base, **{step: step - 1 for step in range(start + 1, start + count)}}
        at = ways["start"][node] + ways["count"][node] - 1 if ways["count"][node] else ways["base"][node]
        found: list[Any] = []
        while at >= 0:
            step = self._steps[at]
            found.append(self._rows[step] if step >= 0 else -step)
            at = before[at]
        return found[::-1]

    def _unpacked(self, name: str) -> Any:
        return json.loads(zlib.decompress(base64.b64decode(self.by_id[name]), -15))
