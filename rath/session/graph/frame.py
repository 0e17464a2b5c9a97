"""Tables as pandas data frames. The one module that loads pandas, when it is first asked to."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from rath.errors import UsageError

__all__ = ["to_frame"]


def to_frame(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> Any:
    """A ``pandas.DataFrame`` of records, with these columns even if there are none.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise UsageError(
            'a data frame needs pandas: pip install pandas, or take the plain records: graph.tables("sessions")'
        ) from error
    try:
        return pandas.DataFrame(list(records), columns=list(columns))
    except UnicodeEncodeError:  # pandas with pyarrow has no strings with lone surrogates: they are made visible
        plain = [{name: _visible(value) for name, value in record.items()} for record in records]
        return pandas.DataFrame(plain, columns=list(columns))


def _visible(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
