"""The widget that shows a graph while it changes. The one module that needs ``anywidget``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

__all__ = ["LineageWidget"]


class LineageWidget(anywidget.AnyWidget):
    """What :func:`rath.watch` returns. :meth:`close` ends the watching.

    Attributes:
        html: the drawing and the panels, escaped.
        state: a sentence on whether more is to come.
        chosen: id of the session that the reader has unfolded; empty without one.
    """

    _esm = Path(__file__).parent / "widget_assets" / "lineage.js"
    html = traitlets.Unicode("").tag(sync=True)
    state = traitlets.Unicode("").tag(sync=True)
    chosen = traitlets.Unicode("").tag(sync=True)

    def close(self) -> None:
        """Take the widget away, and stop looking."""
        stop: Any = getattr(self, "stop", None)
        if stop is not None:
            stop()
        super().close()
