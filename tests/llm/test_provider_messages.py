"""What a provider says went wrong, as an error shows it."""

from __future__ import annotations

import pytest

import rath
from rath.llm.failure import stream_error
from rath.llm.openai import VENDOR

SECRET = "key-in-a-message-0123456789"


@pytest.mark.parametrize("body", [
    {"error": {"message": "x" * 1990 + SECRET}},
    "x" * 490 + SECRET,
    {"odd": "x" * 180 + SECRET},
])  # fmt: skip
def test_a_secret_in_a_providers_message_is_not_cut_in_two(body: object) -> None:
    rath.register_secret(SECRET)
    assert "key-in" not in str(stream_error(body, VENDOR))
