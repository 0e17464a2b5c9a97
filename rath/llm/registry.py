"""Which client serves which provider: the documented names over the port ``client``.

A *kind* (``Provider.provider_kind``) is a name in that port's table: rath's own are ``openai``, ``anthropic``
and ``scripted``; others come from :func:`register_chat_client` or from packages with an entry point in
``rath.client``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, runtime_checkable

from rath.core import ports
from rath.errors import UsageTypeError, UsageValueError
from rath.llm.types import RathLLMChatRequest, RathLLMChatResponse, RathLLMStreamDelta

if TYPE_CHECKING:
    from rath.llm.provider import Provider

__all__ = [
    "ChatClient",
    "ChatClientFactory",
    "StreamingChatClient",
    "chat_client_for",
    "register_chat_client",
    "registered_kinds",
]

DEFAULT_KIND = "openai"
PORT = "client"


@runtime_checkable
class ChatClient(Protocol):
    """A model behind a blocking call.

    A run prefers :class:`rath.core.ports.ModelClient`, which rath's own clients are too; a client that is
    only this is called in a tool thread.
    """

    @property
    def provider(self) -> Provider: ...

    def complete(self, req: RathLLMChatRequest) -> RathLLMChatResponse: ...


@runtime_checkable
class StreamingChatClient(ChatClient, Protocol):
    """A :class:`ChatClient` that can also hand out a completion piece by piece."""

    def complete_stream(self, req: RathLLMChatRequest) -> Iterator[RathLLMStreamDelta]: ...


ChatClientFactory: TypeAlias = "Callable[[Provider], ChatClient]"
"""What makes the client of a provider."""


def register_chat_client(kind: str, factory: ChatClientFactory) -> None:
    """Let ``factory(provider)`` serve providers of ``kind`` in this process, in place of what did.

    Raises:
        UsageTypeError: ``kind`` is no text, or ``factory`` cannot be called.
        UsageValueError: ``kind`` is empty or holds a colon (``"kind:model"`` could not be told apart).
    """
    if not isinstance(kind, str):
        raise UsageTypeError(f"a client kind is a str, not {type(kind).__name__}")
    if not kind or ":" in kind:
        raise UsageValueError(f"{kind!r} cannot name a client kind: it must not be empty or contain ':'")
    if not callable(factory):
        raise UsageTypeError(f"the factory for {kind!r} must be callable with a Provider, not {type(factory).__name__}")
    ports.register(PORT, kind, factory)


def chat_client_for(provider: Provider) -> ChatClient:
    """What serves ``provider``: the client it carries, else one made for its kind (``openai`` if unset).

    Raises:
        UsageValueError: nothing serves that kind.
        UsageError: the kind's factory finds the provider unusable, e.g. without an API key (a ValueError too).
    """
    if provider.client is not None:
        return cast(ChatClient, provider.client)
    kind = provider.provider_kind or DEFAULT_KIND
    try:
        factory = ports.load(PORT, kind)
    except KeyError:
        raise UsageValueError(
            f"no model client of kind {kind!r}; known kinds: {', '.join(registered_kinds())}. "
            "Add one with rath.llm.register_chat_client(kind, factory)"
        ) from None
    return cast(ChatClient, factory(provider))


def registered_kinds() -> tuple[str, ...]:
    """Every kind that :func:`chat_client_for` can serve, rath's own first."""
    return ports.names(PORT)
