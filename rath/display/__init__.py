"""Displays: pure functions from sessions, lineage and diffs to text, SVG and HTML."""

from rath.core.lazy import lazy_exports

_here = __name__
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Section": f"{_here}.html",
        "clean": f"{_here}.text",
        "diff_html": f"{_here}.diff",
        "diff_lines": f"{_here}.diff",
        "html_page": f"{_here}.html",
        "lineage_mermaid": f"{_here}.mermaid",
        "lineage_svg": f"{_here}.svg",
        "lineage_tree": f"{_here}.tree",
        "session_html": f"{_here}.html",
    },
)
