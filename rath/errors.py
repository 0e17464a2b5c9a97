"""Every error that rath raises.

::

    RathError (a RuntimeError)
    ├── UsageError                 you called it wrongly
    │   ├── UsageTypeError         … and the documented API says TypeError
    │   ├── UsageValueError        … and the documented API says ValueError
    │   ├── ToolNameConflictError  (ValueError)
    │   └── LineageConsistencyError (ValueError)
    ├── ProviderError              the model's side: status, code, request_id, retryable, retry_after_s
    ├── ToolError                  a tool's own failure, for tools that want to name it
    ├── SandboxError = BackendError
    │   ├── SandboxClosed = BackendSandboxClosed
    │   ├── SandboxUnavailable     with the remedy
    │   ├── SandboxBroken          the outcome of the last call is unknown
    │   ├── BackendNotFound
    │   └── UnsupportedBackendTool
    ├── PersistenceError
    │   └── DamagedLog             verdict, reason, line, offset
    ├── PolicyStop
    │   ├── BudgetExceededError    budget_tokens, used_tokens, budget_usd, current_cost_usd
    │   ├── PermissionDeniedError
    │   ├── GuardrailViolatedError
    │   ├── RepetitionError
    │   ├── CircuitOpenError
    │   └── TurnTimeoutError       timeout_s
    ├── RunCancelled
    └── WouldDeadlock

Fields are keyword arguments with defaults and live in ``__dict__``, so that ``pickle`` (which rebuilds an exception from
``args`` and ``__dict__``) keeps them together with the notes.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendNotFound",
    "BackendSandboxClosed",
    "BudgetExceededError",
    "CircuitOpenError",
    "DamagedLog",
    "GuardrailViolatedError",
    "LineageConsistencyError",
    "PermissionDeniedError",
    "PersistenceError",
    "PolicyStop",
    "ProviderError",
    "RathError",
    "RepetitionError",
    "RunCancelled",
    "SandboxBroken",
    "SandboxClosed",
    "SandboxError",
    "SandboxUnavailable",
    "ToolError",
    "ToolNameConflictError",
    "TurnTimeoutError",
    "UnsupportedBackendTool",
    "UsageError",
    "UsageTypeError",
    "UsageValueError",
    "WouldDeadlock",
]


class RathError(RuntimeError):
    """Root of rath's own errors."""


class UsageError(RathError):
    """The call cannot be right, whatever happens at run time."""


class UsageTypeError(UsageError, TypeError):
    """An argument has a type that the operation cannot take."""


class UsageValueError(UsageError, ValueError):
    """An argument has a value that the operation cannot take."""


class ToolNameConflictError(UsageError, ValueError):
    """Two tools of one run have the same name."""


class LineageConsistencyError(UsageError, ValueError):
    """A lineage refers to a session that is not there, or has a cycle."""


class ProviderError(RathError):
    """A model could not be reached, refused, or sent a reply that is none.

    Args:
        status: HTTP status, if there was a response.
        code: the provider's own error code.
        request_id: what the provider's support asks for.
        retryable: whether the same request may succeed later.
        retry_after_s: how many seconds the provider asked to wait.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class ToolError(RathError):
    """Raise it in a tool to send the model an ``error_kind`` of your own.

    Args:
        kind: the payload's ``error_kind``.
        detail: the payload's ``detail``, cut at 4,000 characters.
    """

    def __init__(self, message: str = "", *, kind: str = "tool_execution_exception", detail: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.detail = detail


class SandboxError(RathError):
    """A sandbox cannot do what was asked. Fails the run; it is never fed to the model."""


class SandboxClosed(SandboxError):
    """This session's hold on its sandbox was released. Place it again: ``session = session.to("local")``."""


class SandboxUnavailable(SandboxError):
    """The backend does not work on this machine; the message says what to do."""


class SandboxBroken(SandboxError):
    """The sandbox died under a call, whose outcome is therefore unknown. It is never retried."""


class BackendNotFound(SandboxError):
    """No backend has this name."""


class UnsupportedBackendTool(SandboxError):
    """The backend cannot run this kind of call."""

    def __init__(self, call_type: object = "", backend: str = "") -> None:
        name = call_type.__name__ if isinstance(call_type, type) else str(call_type)
        super().__init__(f"backend {backend!r} does not support {name}" if backend else name)


BackendError = SandboxError
BackendSandboxClosed = SandboxClosed


class PersistenceError(RathError):
    """A session log could not be written or read."""


class DamagedLog(PersistenceError):
    """A session log contradicts itself and is refused.

    Args:
        verdict: ``"damaged"`` or ``"torn"``.
        reason: what contradicts what, in a few words.
        line: 1-based line number of the first bad line.
        offset: byte offset of that line.
    """

    def __init__(
        self,
        message: str = "",
        *,
        verdict: str = "damaged",
        reason: str = "",
        line: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.reason = reason
        self.line = line
        self.offset = offset


class PolicyStop(RathError):
    """A rule that you set ended the run."""


class BudgetExceededError(PolicyStop):
    """A budget of tokens or money is used up. Raise it from ``Provider.on_budget_exceeded`` to stop the run.

    Args:
        budget_tokens: the cap, in tokens.
        used_tokens: what was used when it was noticed, in tokens.
        budget_usd: the cap, in US dollars.
        current_cost_usd: what was spent when it was noticed, in US dollars.
    """

    def __init__(
        self,
        message: str = "",
        *,
        budget_tokens: int | None = None,
        used_tokens: int | None = None,
        budget_usd: float | None = None,
        current_cost_usd: float | None = None,
    ) -> None:
        super().__init__(message)
        self.budget_tokens = budget_tokens
        self.used_tokens = used_tokens
        self.budget_usd = budget_usd
        self.current_cost_usd = current_cost_usd


class PermissionDeniedError(PolicyStop):
    """A permission policy refused a tool call."""


class GuardrailViolatedError(PolicyStop):
    """A guardrail refused a value."""


class RepetitionError(PolicyStop):
    """The agent repeats itself without making progress."""


class CircuitOpenError(PolicyStop):
    """A circuit breaker is open."""


class TurnTimeoutError(PolicyStop):
    """A run took longer than its ``timeout_s`` (seconds)."""

    def __init__(self, message: str = "", *, timeout_s: float | None = None) -> None:
        super().__init__(message)
        self.timeout_s = timeout_s


class RunCancelled(RathError):
    """The run was cancelled before it finished."""


class WouldDeadlock(RathError):
    """Waiting here could never end, because what is waited for needs the waiter."""
