"""The demo's agents: scripted models, whose tool calls are real, and the project that they work on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rath.core.encoding import decode_json
from rath.llm.provider import Provider
from rath.llm.scripted import Reply, ScriptedClient
from rath.llm.types import RathLLMChatRequest, RathLLMTokenUsage

__all__ = ["BRANCHES", "OPENING", "DemoAgent", "copy_project", "scripted"]

_DATA = Path(__file__).with_name("data")
_COMMON = "You work on a small Python project through your tools. Its tests are the judge; leave them as they are."


@dataclass(frozen=True, slots=True)
class DemoAgent:
    """An agent of the demo: a name for people, its instructions, and its script in ``data/agents``."""

    name: str
    prompt: str
    script: str

    def provider(self, speed: float) -> Provider:
        """Its model. ``speed``: how much faster than written the replies come."""
        spec = decode_json((_DATA / "agents" / self.script).read_bytes())
        return scripted(spec["replies"], latency_s=spec["latency_s"] / speed, calls=Path(self.script).stem)


OPENING = DemoAgent("reproduce", f"{_COMMON} Find out what is wrong. Change nothing.", "opening.json")
BRANCHES = (
    DemoAgent("read first", f"{_COMMON} Read code and tests before you edit.", "reader.json"),
    DemoAgent("quick edit", f"{_COMMON} Make the smallest edit that turns the red tests green.", "quick.json"),
    DemoAgent("outside in", f"{_COMMON} Begin where the user notices the problem.", "outside_in.json"),
)


def scripted(replies: Sequence[Any], *, latency_s: float, calls: str = "call") -> Provider:
    """A provider that says ``replies`` and reports tokens estimated from what it really got and said.

    Args:
        calls: what the ids of its tool calls begin with: the branches' transcripts are merged, and no two calls of one
            transcript may have the same id.
    """
    client = ScriptedClient(
        [_counted(_with_ids(reply, f"{calls}_{turn}")) for turn, reply in enumerate(replies, 1)],
        latency_s=latency_s,
        by_turn=True,
        record=False,
        model="demo-script",
    )
    return client.as_provider()


def _with_ids(reply: Any, prefix: str) -> Reply:
    if isinstance(reply, str):
        return Reply(text=reply)
    made = Reply(**reply)
    return replace(made, tool_calls=[{**call, "id": f"{prefix}_{n}"} for n, call in enumerate(made.tool_calls, 1)])


def _counted(reply: Reply) -> Any:
    def answer(request: RathLLMChatRequest) -> Reply:
        asked = sum(len(message.content or "") + len(str(message.tool_calls or "")) for message in request.messages)
        said = len(reply.text or "") + sum(len(str(call)) for call in reply.tool_calls)
        # Four characters a token: a usual rule of thumb, and the demo says that it is an estimate.
        prompt, completion = asked // 4 + 1, said // 4 + 1
        usage = RathLLMTokenUsage(prompt, completion, prompt + completion)
        return replace(reply, usage=usage)

    return answer


def copy_project(target: Path) -> None:
    """Put the project, bug included, into ``target``."""
    shutil.copytree(_DATA / "project", target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
