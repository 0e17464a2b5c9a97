"""Values of a reply, taken for what they are and not for what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rath.llm.types import RathLLMTokenUsage

__all__ = ["count", "mapping", "token_usage", "words"]

# Where floats, and so most readers of JSON, stop counting by one.
COUNT_LIMIT = 2**53


def count(value: object) -> int | None:
    """A whole number from 0 up to 2**53; ``None`` for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < COUNT_LIMIT:
        return None
    return int(value)


def words(value: object) -> str | None:
    """A text that is not empty."""
    return value if isinstance(value, str) and value else None


def mapping(value: object) -> Mapping[str, Any] | None:
    """A JSON object."""
    return value if isinstance(value, Mapping) else None


def token_usage(
    *,
    prompt: object,
    completion: object,
    total: object = None,
    prompt_details: object = None,
    completion_details: object = None,
) -> RathLLMTokenUsage | None:
    """A usage; ``None`` if one of its numbers cannot be a number of tokens. A number that is missing is 0, a total the sum.

    Budgets are reckoned with it: a negative or an infinite number would lift or break them.
    """
    numbers = [count(value) if isinstance(value, int | float) else 0 for value in (prompt, completion, total)]
    asked, said, both = numbers
    if asked is None or said is None or both is None or asked + said >= COUNT_LIMIT:
        return None
    return RathLLMTokenUsage(
        prompt_tokens=asked,
        completion_tokens=said,
        total_tokens=both or asked + said,
        completion_tokens_details=mapping(completion_details),
        prompt_tokens_details=mapping(prompt_details),
    )
