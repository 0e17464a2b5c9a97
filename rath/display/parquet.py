"""The lineage graph's tables as Parquet files. The one module that loads pyarrow, when it is first asked to."""

from __future__ import annotations

import importlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from rath.errors import UsageError
from rath.session.graph.tables import COLUMNS

__all__ = ["graph_parquet"]

_INTEGERS = {
    *("rows", "folded", "prompt_tokens", "completion_tokens", "total_tokens", "index", "result_index"),
    *("size_bytes", "result_size_bytes", "subtree_tokens", "subtree_tokens_unknown", "subtree_cost_unknown"),
}
_FLOATS = {"cost_usd", "duration_s", "subtree_cost_usd"}
_LISTS = {"parents", "roles"}


class _Graph(Protocol):
    def tables(self, name: str = ...) -> list[dict[str, Any]]: ...


def graph_parquet(graph: _Graph, directory: Path) -> list[Path]:
    """Each table as ``<name>.parquet`` in ``directory``, which is made; their paths.

    Columns and types are the same for every graph. A file that is there is replaced, whole or not at all.

    Raises:
        UsageError: pyarrow is not installed.
        OSError: a file cannot be written.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            "Parquet files need pyarrow: pip install pyarrow, or take to_jsonl, which needs nothing"
        ) from error
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, columns in COLUMNS.items():
        schema = arrow.schema([(column, _type(arrow, name, column)) for column in columns])
        records = [{column: _plain(value) for column, value in row.items()} for row in graph.tables(name)]
        path = directory / f"{name}.parquet"
        temporary = directory / f".{name}.{os.urandom(6).hex()}.tmp"
        try:
            parquet.write_table(arrow.Table.from_pylist(records, schema=schema), temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        paths.append(path)
    return paths


def _type(arrow: Any, table: str, column: str) -> Any:
    if column in _INTEGERS or (table, column) == ("rows", "tool_calls"):
        return arrow.int64()
    if column in _FLOATS:
        return arrow.float64()
    if column in _LISTS:
        return arrow.list_(arrow.string())
    if column == "created_at":
        return arrow.timestamp("us", tz="UTC")
    return arrow.bool_() if column == "ok" else arrow.string()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, datetime)):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    # Parquet's strings are UTF-8, which has no bytes for lone surrogates.
    return str(value).encode("utf-8", "backslashreplace").decode()
