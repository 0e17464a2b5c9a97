"""The widget that shows a graph while it changes. The one module that needs ``anywidget``."""

from __future__ import annotations

from html import escape
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

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view; and for where nobody keeps widgets alive, as in a saved notebook, the graph as it is now."""
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:
            return None
        data, metadata = found
        still = f'{self.html}<p>As it was when this cell ran: {escape(self.state)}.</p>'
        return data | {"text/plain": f"rath.watch: {self.state}", "text/html": still}, metadata

    def close(self) -> None:
        """Take the widget away, and stop looking."""
        stop: Any = getattr(self, "stop", None)
        if stop is not None:
            stop()
        super().close()
