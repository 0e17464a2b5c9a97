"""What clients over HTTP share: credentials, SDK clients, and the course of a request.

A request goes through the SDK's client as a ready-made body. The SDKs' own ``create`` walks every message of
the history with its typed transformation: 25 ms for 101 messages, where encoding them takes 0.02.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import os
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from rath.core import ports
from rath.core.encoding import encode_json
from rath.core.redact import register_secret
from rath.errors import UsageError, UsageTypeError, UsageValueError
from rath.llm.bounds import ReplyMeter, expects_stream
from rath.llm.client import ChatClientBase
from rath.llm.failure import Vendor, decode_reply, mapped_errors
from rath.llm.fold import response_deltas
from rath.llm.provider import Provider
from rath.llm.types import RathLLMChatRequest, RathLLMChatResponse, RathLLMStreamDelta

__all__ = ["HttpChatClient", "SdkClients", "StreamReader"]

NO_KEY = "none"
FINE_TUNED = "ft"
_IS_KIND = re.compile(r"[A-Za-z]+(?:[-_][A-Za-z]+)*").fullmatch
_SDK_OPTIONS = {"extra_headers": "headers", "extra_query": "params", "timeout": "timeout"}


class Access(NamedTuple):
    """How to reach a provider: what an SDK client is made of."""

    api_key: str
    base_url: str
    timeout_s: float | None

    def __repr__(self) -> str:
        return f"Access(base_url={self.base_url!r})"


def resolve_access(provider: Provider, vendor: Vendor) -> Access:
    """Key and address: the provider's own, else the environment's.

    A server on this machine needs no key. A key that is found is redacted from now on.

    Raises:
        UsageError: the key cannot stand in a header.
        UsageValueError: there is no key, or the base URL is none.
    """
    base_url = provider.base_url or os.environ.get(vendor.url_variable) or vendor.default_url
    host = _host(base_url)
    if host is None:
        raise UsageValueError(f"the base URL for {vendor.label} must start with http:// or https:// and name a host")
    key, source = _find_key(provider, vendor)
    if key:
        register_secret(key)
        if not (key.isascii() and key.isprintable()):
            # The HTTP library's own refusal quotes the whole header.
            raise UsageError(
                f"the API key in {source} has a character inside that no HTTP header can carry (a line break, a "
                "typographic dash, …): copy the key again"
            )
        return Access(key, base_url, provider.timeout_s)
    if not _is_loopback(host):
        raise UsageValueError(
            f"no API key for {vendor.label}: set the environment variable {vendor.key_variable} or pass "
            "Provider(api_key=…); `rath doctor` shows what is configured"
        )
    return Access(NO_KEY, base_url, provider.timeout_s)


def _host(base_url: str) -> str | None:
    try:
        parts = urlsplit(base_url)
        parts.port  # noqa: B018 - raises ValueError for what is no port
    except ValueError:
        return None
    return parts.hostname if parts.scheme in {"http", "https"} else None


def _find_key(provider: Provider, vendor: Vendor) -> tuple[str, str]:
    """The key, without the line break that mounted secret files end in, and where it stands."""
    key = (provider.api_key or "").strip()
    if key:
        return key, "Provider(api_key=…)"
    return os.environ.get(vendor.key_variable, "").strip(), vendor.key_variable


def check_kind(provider: Provider, vendor: Vendor) -> None:
    """Refuse a model whose prefix looks like a mistyped kind: it would go, with its prompts, to another provider.

    Servers with models like ``"mistral:7b"`` have a base URL of their own, and OpenAI's fine-tuned models begin with
    ``"ft:"``.

    Raises:
        UsageValueError: it names the kinds there are.
    """
    prefix, colon, rest = (provider.model or "").partition(":")
    if provider.provider_kind is not None or not colon or not rest or prefix == FINE_TUNED:
        return
    if provider.base_url or os.environ.get(vendor.url_variable) or not _IS_KIND(prefix):
        return
    kinds = ports.names("client")
    close = difflib.get_close_matches(prefix.lower(), kinds, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    raise UsageValueError(
        f"no provider kind {prefix!r}; there are: {', '.join(kinds)}{meant}. For a server of your own set base_url; "
        f"provider_kind='openai' sends the model's name as it is"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Closable(Protocol):
    def close(self) -> Coroutine[Any, Any, None]: ...


C = TypeVar("C", bound=_Closable)


class SdkClients(Generic[C]):
    """One SDK client for each configuration and event loop.

    Making one costs 26-30 ms, and its connections belong to the loop. A client is closed when its loop shuts down: by
    the engine, or by ``asyncio.run``. A forked child has an engine, and so a loop and clients, of its own.
    """

    def __init__(self, make: Callable[[Access], C]) -> None:
        self._make = make
        self._by_loop: dict[asyncio.AbstractEventLoop, dict[Access, tuple[C, AsyncGenerator[None, None]]]] = {}

    async def get(self, access: Access) -> C:
        """The running loop's client for ``access``."""
        loop = asyncio.get_running_loop()
        clients = self._by_loop.get(loop)
        if clients is None:
            for other in list(self._by_loop):
                if other.is_closed():
                    self._by_loop.pop(other, None)
            clients = self._by_loop[loop] = {}
        found = clients.get(access)
        if found is not None:
            return found[0]
        client = self._make(access)
        lifetime = _until_closed(client, functools.partial(clients.pop, access, None))
        clients[access] = (client, lifetime)
        # A started asynchronous generator is what `asyncio.run` closes at its end (`shutdown_asyncgens`).
        await anext(lifetime)
        engine = ports.engine()
        if engine.on_loop_thread():
            engine.at_close(lifetime.aclose)
        return client


async def _until_closed(client: _Closable, forget: Callable[[], object]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        forget()
        await client.close()


def split_sdk_options(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request's body, and the options for the SDK that came with it.

    ``extra_headers``, ``extra_query`` and ``timeout`` are such options. ``extra_body`` is merged into the
    body. What is ``None`` is left out of it: ``extra_create_args={"store": None}`` takes a field out of the
    request.

    Raises:
        UsageTypeError: an option is no mapping of names.
        UsageValueError: a header cannot be sent.
    """
    extra = arguments.pop("extra_body", None)
    options = {option: value for name, option in _SDK_OPTIONS.items() if (value := arguments.pop(name, None)) is not None}
    for option in ("headers", "params"):
        if not isinstance(options.get(option, {}), Mapping):
            raise UsageTypeError(f"extra_create_args: extra_{'headers' if option == 'headers' else 'query'} must be a dict")
    for name, value in options.get("headers", {}).items():
        # The value may be a secret: the HTTP library's refusal would quote it.
        if isinstance(value, str) and not (str(name).isascii() and value.isascii() and value.isprintable()):
            raise UsageValueError(f"extra_headers: the value of {name!r} has a character that no HTTP header can carry")
    body = {name: value for name, value in arguments.items() if value is not None}
    if extra:
        body.update(extra)
    return body, options


class StreamReader(Protocol):
    """Turns the events of one stream into deltas."""

    def read(self, event: object) -> Iterator[RathLLMStreamDelta]:
        """The deltas of the next event."""

    def finish(self) -> None:
        """The stream has ended. Raises ``ProviderError`` if it cannot have been the whole reply."""


class HttpChatClient(ChatClientBase):
    """A client over one of the SDKs. A vendor's client says how requests are written and replies are read."""

    vendor: ClassVar[Vendor]
    sdk_clients: ClassVar[SdkClients[Any]]

    def __init__(self, provider: Provider) -> None:
        check_kind(provider, self.vendor)
        self._provider = provider
        self._access = resolve_access(provider, self.vendor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._provider!r})"

    @property
    def default_model(self) -> str | None:
        """The model of a request that names none: the provider's, else the environment's."""
        return self._provider.model or os.environ.get(self.vendor.model_variable) or None

    @abstractmethod
    def _arguments(self, request: RathLLMChatRequest, stream: bool) -> dict[str, Any]:
        """The request in the vendor's form."""

    @abstractmethod
    def _response(self, reply: Mapping[str, Any]) -> RathLLMChatResponse:
        """A whole reply in rath's form."""

    @abstractmethod
    def _reader(self) -> StreamReader: ...

    async def open_completion(
        self, request: RathLLMChatRequest, *, stream: bool
    ) -> AsyncGenerator[RathLLMStreamDelta | RathLLMChatResponse, None]:
        """One attempt at a completion; see :class:`rath.core.ports.ModelClient`.

        Raises:
            ProviderError: the provider could not be reached, refused, or sent what is no reply.
            UsageError: the request cannot be said in the vendor's form, names no model, or cannot be encoded.
        """
        vendor, access = self.vendor, self._access
        body, options = split_sdk_options(self._arguments(request, stream))
        content = encode_json(body)
        with mapped_errors(vendor, access.base_url, access.timeout_s):
            sdk = await self.sdk_clients.get(access)
            sending = expects_stream.set(stream)
            try:
                if stream:
                    events = await sdk.post(
                        vendor.path,
                        cast_to=object,
                        content=content,
                        options=options,
                        stream=True,
                        stream_cls=vendor.stream_class,
                    )
                else:
                    reply = await sdk.post(vendor.path, cast_to=bytes, content=content, options=options)
            finally:
                expects_stream.reset(sending)
            if not stream:
                yield self._response(decode_reply(reply, vendor))
                return
            try:
                if "json" in events.response.headers.get("content-type", ""):
                    # A server that does not stream answers all at once.
                    whole = self._response(decode_reply(await events.response.aread(), vendor))
                    for delta in response_deltas(whole):
                        yield delta
                    return
                reader, meter = self._reader(), ReplyMeter(vendor.label)
                while (event := await anext(events, None)) is not None:
                    for delta in reader.read(event):
                        meter.add(delta)
                        yield delta
                reader.finish()
            finally:
                await events.close()
