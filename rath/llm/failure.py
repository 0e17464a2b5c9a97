"""What goes wrong between rath and a provider, in rath's terms: every failure is a :class:`ProviderError`."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from rath.core.encoding import decode_json, encode_json
from rath.core.redact import redact_text
from rath.errors import ProviderError, RathError, UsageTypeError

__all__ = ["Vendor", "decode_reply", "mapped_errors", "reply_json", "stream_error"]

_RETRYABLE_STATUS = frozenset({408, 409, 429})
# The codes and types that providers give to errors which pass, for those that come inside a stream (HTTP
# status 200).
_RETRYABLE_CODES = frozenset(
    {
        "api_error",
        "overloaded",
        "overloaded_error",
        "rate_limit_error",
        "rate_limit_exceeded",
        "server_error",
        "service_unavailable",
        "timeout",
        "timeout_error",
    }
)
# A 429 that no waiting mends: the account has no money left.
_LASTING_CODES = frozenset({"billing_hard_limit_reached", "insufficient_quota"})
# What reading a hostile or broken reply can raise, here and in the SDKs.
_READING_ERRORS = (ArithmeticError, TypeError, LookupError, AttributeError, ValueError, RecursionError)
_IS_STATUS = re.compile(r"[1-5][0-9]{2}", re.ASCII).fullmatch
MESSAGE_CHARS = 2000
CODE_CHARS = 200
_CONNECTION_MODULES = frozenset({"anyio", "h11", "h2", "httpcore", "httpcore2", "httpx", "httpx2", "ssl"})


class Vendor(NamedTuple):
    """What differs between two providers' SDKs, which one generator wrote."""

    label: str
    key_variable: str
    url_variable: str
    model_variable: str
    default_url: str
    path: str
    stream_class: type[Any]
    api_error: type[Exception]
    status_error: type[Exception]
    connection_error: type[Exception]
    timeout_error: type[Exception]


def decode_reply(content: bytes, vendor: Vendor) -> dict[str, Any]:
    """The JSON object in a response's body.

    Raises:
        ProviderError: there is none, or it is an error report (some servers send those with HTTP status 200).
    """
    try:
        reply = decode_json(content)
    except (ValueError, RecursionError) as error:
        raise ProviderError(
            f"{vendor.label} sent a reply that is not JSON: {_excerpt(content)}; check the base URL"
        ) from error
    if not isinstance(reply, dict):
        raise ProviderError(f"{vendor.label} sent a reply that is no JSON object: {_excerpt(content)}")
    if reply.get("error"):
        raise stream_error(reply, vendor)
    return reply


def reply_json(value: object, vendor: Vendor) -> str:
    """JSON text of a part of a reply: of arguments that came as an object instead of as text."""
    try:
        return encode_json(value).decode()
    except UsageTypeError as error:
        raise ProviderError(f"{vendor.label} sent a malformed reply: {error}", code="malformed") from error


def _excerpt(content: bytes) -> str:
    text = content[:200].decode("utf-8", "replace")
    return repr(redact_text(text)) + ("…" if len(content) > 200 else "")


def stream_error(body: object, vendor: Vendor, *, status: int | None = None) -> ProviderError:
    """The error that a provider reports in the body of a response whose status says nothing about it."""
    code, message = _code_and_message(body)
    if code is not None and _IS_STATUS(code):
        status = int(code)
    retryable = code in _RETRYABLE_CODES if status is None else _is_retryable(status, code)
    return ProviderError(
        f"{vendor.label} reported an error: {message or redact_text(_text(body))[:200]}",
        status=status,
        code=code,
        retryable=retryable,
    )


def _is_retryable(status: int, code: str | None) -> bool:
    return (status in _RETRYABLE_STATUS and code not in _LASTING_CODES) or status >= 500


def _code_and_message(body: object) -> tuple[str | None, str]:
    """An error body's code and text: ``{"error": {…}}``, the inner object alone, or just a text."""
    detail = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(detail, Mapping):
        code = detail.get("code") or detail.get("type")
        message = detail.get("message") or detail.get("detail") or ""
        return (None if code is None else redact_text(_text(code))[:CODE_CHARS]), redact_text(_text(message))[:MESSAGE_CHARS]
    return None, "" if detail is None else redact_text(_text(detail))[:500]


def _text(value: object) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, lists in lists in lists …
        return f"<{type(value).__name__}>"


@contextlib.contextmanager
def mapped_errors(vendor: Vendor, base_url: str, timeout_s: float | None) -> Iterator[None]:
    """Errors of the SDK, of what it stands on, and of reading a reply leave this block as :class:`ProviderError`.

    The original is their cause, unless its text shows a header or a known secret: a traceback prints causes too.
    """
    try:
        yield
    except Exception as error:
        mapped = _map(error, vendor, base_url, timeout_s)
        if mapped is None:
            raise
        if mapped is error.__cause__ or _shows_secret(error):
            raise mapped from None
        raise mapped from error


def _shows_secret(error: BaseException) -> bool:
    """Whether the printed traceback of ``error`` would hold a header's value or a known secret."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        text = _text(following)
        if _is_header_error(following) or redact_text(text) != text:
            return True
        following = following.__cause__ or following.__context__
    return False


def _is_header_error(error: BaseException) -> bool:
    # h11's and httpx's refusal of a request quotes the header's value.
    return type(error).__name__ == "LocalProtocolError"


def _map(error: Exception, vendor: Vendor, base_url: str, timeout_s: float | None) -> ProviderError | None:
    if isinstance(error, RathError):
        return None
    if isinstance(error.__cause__, ProviderError):  # raised where the body is read, wrapped by the SDK
        return error.__cause__
    if isinstance(error, vendor.status_error):
        return _map_status(error, vendor, base_url)
    if isinstance(error, vendor.timeout_error):
        waited = "" if timeout_s is None else f" within {timeout_s:g} s"
        return ProviderError(
            f"{vendor.label} at {_shown(base_url)} did not answer{waited}; Provider(timeout_s=…) sets how long to wait",
            code="timeout",
            retryable=True,
        )
    if isinstance(error, vendor.connection_error) or _is_connection_error(error):
        cause = error.__cause__ or error
        if _is_header_error(cause):
            return ProviderError(
                f"the request to {vendor.label} could not be sent: one of its headers has a character that no header can "
                f"carry; check {vendor.key_variable} and the SDK's variables for headers",
                code="connection",
            )
        reason = redact_text(_text(cause))[:MESSAGE_CHARS]
        return ProviderError(
            f"the connection to {vendor.label} at {_shown(base_url)} failed: {type(cause).__name__}"
            + (f": {reason}" if reason else ""),
            code="connection",
            retryable=True,
        )
    if isinstance(error, vendor.api_error):
        body = getattr(error, "body", None)
        return stream_error(body if body is not None else {"message": _text(error)}, vendor)
    if isinstance(error, _READING_ERRORS):
        # What a request is made of has been checked: it is the reply that cannot be read.
        reason = redact_text(_text(error))[:MESSAGE_CHARS]
        return ProviderError(
            f"{vendor.label} sent a malformed reply ({type(error).__name__}: {reason}); check the base URL",
            code="malformed",
        )
    return None


def _is_connection_error(error: Exception) -> bool:
    return isinstance(error, OSError | EOFError) or type(error).__module__.split(".")[0] in _CONNECTION_MODULES


def _map_status(error: Exception, vendor: Vendor, base_url: str) -> ProviderError:
    response: Any = error.response  # type: ignore[attr-defined]
    status = int(response.status_code)
    body = getattr(error, "body", None)
    request_id = getattr(error, "request_id", None) or response.headers.get("x-request-id")
    if request_id is not None:
        request_id = redact_text(str(request_id))[:CODE_CHARS]
    if 300 <= status < 400:
        target = _target(base_url, response.headers.get("location"))
        return ProviderError(
            f"{vendor.label} at {_shown(base_url)} answered {status}: a redirect to {target}. It was not followed: prompts "
            "and keys would go there. If that is the right address, set it as the base URL",
            status=status,
            request_id=request_id,
        )
    if status < 300:  # an error event inside a stream that had begun well
        mapped = stream_error(body, vendor)
        mapped.request_id = request_id
        return mapped
    code, message = _code_and_message(body)
    text = f"{vendor.label} at {_shown(base_url)} answered {status}"
    if message:
        text += f": {redact_text(message)}"
    advice = {
        401: f"check {vendor.key_variable}; `rath doctor` shows what is configured",
        403: f"the key in {vendor.key_variable} may not do this",
        404: "check the model's name and the base URL",
        413: "the request is too large: compress the session, or cut tool results",
    }.get(status)
    return ProviderError(
        text + (f" ({advice})" if advice else "") + (f" [request {request_id}]" if request_id else ""),
        status=status,
        code=code,
        request_id=request_id,
        retryable=_is_retryable(status, code),
        retry_after_s=_retry_after_s(response.headers),
    )


def _target(base_url: str, location: str | None) -> str:
    if not location:
        return "no address at all"
    try:
        return redact_text(_shown(urljoin(base_url, location)))[:CODE_CHARS]
    except ValueError:
        return "what is no address"


def _shown(base_url: str) -> str:
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "") + parts.path


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How many seconds to wait, as the provider asks: a number, or an HTTP date (RFC 9110, 10.2.3)."""
    milliseconds = headers.get("retry-after-ms")
    value = headers.get("retry-after")
    try:
        if milliseconds:
            return max(0.0, float(milliseconds) / 1000)
        if not value:
            return None
        try:
            return max(0.0, float(value))
        except ValueError:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
