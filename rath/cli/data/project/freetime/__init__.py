"""Gaps between meetings."""

from .spans import Span, free, merge

__all__ = ["Span", "free", "merge"]
