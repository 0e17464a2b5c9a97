"""A history that comes from another model, or from a log, is one that a provider takes."""

from __future__ import annotations

from typing import Any

import pytest

from rath.llm.anthropic import build_anthropic_kwargs
from rath.llm.openai import to_create_kwargs
from rath.llm.types import RathLLMChatRequest, RathLLMFunctionTool, RathLLMMessage
from rath.testing import check_history


def round_of(call_id: str, name: str = "read", text: str = "x") -> tuple[RathLLMMessage, ...]:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
    return (
        RathLLMMessage(role="assistant", content=None, tool_calls=(call,)),
        RathLLMMessage(role="tool", content=text, tool_call_id=call_id),
    )


USER = RathLLMMessage(role="user", content="go")


def anthropic(*messages: RathLLMMessage, **options: Any) -> list[dict[str, Any]]:
    request = RathLLMChatRequest(messages=messages, model="m", **options)
    sent: list[dict[str, Any]] = build_anthropic_kwargs(request, default_model=None)["messages"]
    return sent


def test_ids_that_a_server_counts_from_0_in_each_reply_are_distinct_for_anthropic() -> None:
    history = (USER, *round_of("call_0", text="a"), *round_of("call_0", text="b"), *round_of("call_0", text="c"))
    check_history(history)
    sent = anthropic(*history)
    uses = [message["content"][0]["id"] for message in sent if message["role"] == "assistant"]
    results = [(message["content"][0]["tool_use_id"], message["content"][0]["content"]) for message in sent[2::2]]
    assert uses[0] == "call_0"
    assert len(set(uses)) == 3
    assert results == list(zip(uses, "abc", strict=True))
    # What was sent before is sent again, byte for byte.
    assert anthropic(*history[:5]) == sent[:5]


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("functions.read", "functions_read"),
        ("[redacted]", "_redacted_"),
        ("psql -c 'insert " + 100 * "x", ("psql -c 'insert " + 100 * "x").replace(" ", "_").replace("'", "_")[:64]),
        ("", "_"),
        ("lire-écrire", "lire-_crire"),
    ],
)
def test_a_call_of_what_is_no_functions_name_stays_in_the_history_under_another(name: str, sent: str) -> None:
    history = (USER, *round_of("a", name))
    check_history(history)
    openai = to_create_kwargs(RathLLMChatRequest(messages=history, model="m"), default_model=None)["messages"]
    assert openai[1]["tool_calls"][0]["function"]["name"] == sent
    assert anthropic(*history)[1]["content"][0]["name"] == sent
    assert history[1].tool_calls is not None
    assert history[1].tool_calls[0]["function"]["name"] == name


def test_a_tool_that_the_request_offers_keeps_its_name() -> None:
    tool = RathLLMFunctionTool(name="files.read", description="", parameters={})
    request = RathLLMChatRequest(messages=(USER, *round_of("a", "files.read")), model="m", tools=(tool,))
    assert to_create_kwargs(request, default_model=None)["messages"][1]["tool_calls"][0]["function"]["name"] == "files.read"
