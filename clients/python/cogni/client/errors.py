"""What a refused or failed call raises: one exception type per gRPC code, with Cogni's details."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN = "cogni"
# Where gRPC carries a google.rpc.Status, in every language.
STATUS_TRAILER = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """One field of a request that breaks a rule."""

    field: str
    description: str


class CogniError(Exception):
    """A call did not succeed. The message says what was wrong and what to do next.

    `code` is the gRPC code. `reason` is the name of a `cogni.type.v1.ErrorReason` without its
    prefix, or "" when the answer did not come from Cogni (a proxy, or no server at all).
    `retry_after` is set when the server said how long to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after = retry_after


class InvalidRequest(CogniError):
    """The request breaks documented rules; `violations` lists every one of them."""


class NotAuthenticated(CogniError):
    """The token is missing, expired or not valid here."""


class NotAllowed(CogniError):
    """The caller may not do this."""


class NotFound(CogniError):
    """No such resource in the caller's tenant."""


class AlreadyExists(CogniError):
    """The resource exists, or the request_id was used with other content."""


class NotPossibleNow(CogniError):
    """The resource is in a state that does not allow this."""


class Conflict(CogniError):
    """Somebody else was faster. Read again, then retry."""


class LimitExceeded(CogniError):
    """A named limit is reached."""


class CursorInvalid(CogniError):
    """A cursor or sequence points outside what is kept."""


class NotImplementedYet(CogniError):
    """The RPC is part of the contract and the server does not have it."""


class Unavailable(CogniError):
    """No server answered, or it is stopping."""


class DeadlineExceeded(CogniError):
    """The call took longer than its timeout. Repeat it with the same request_id."""


class Cancelled(CogniError):
    """The call was cancelled on this side."""


class ServerFault(CogniError):
    """Something unforeseen failed in the server; the message carries the trace id."""


_BY_CODE: Mapping[grpc.StatusCode, type[CogniError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthenticated,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: NotPossibleNow,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.OUT_OF_RANGE: CursorInvalid,
    grpc.StatusCode.UNIMPLEMENTED: NotImplementedYet,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}

# In what gRPC says of a call that this side cancelled, or whose channel it closed.
_OURS = ("Locally cancelled", "Channel closed")


def client_closed() -> Cancelled:
    """What calls of a closed client raise, those under way when it was closed too."""
    return Cancelled(
        "this client is closed; make a new one to call again", code=grpc.StatusCode.CANCELLED
    )


def from_rpc_error(error: grpc.RpcError) -> CogniError:
    """The typed error for what a stub raised. Never raises itself."""
    code = error.code()
    kind = _BY_CODE.get(code, ServerFault)
    message = error.details() or code.name
    status = _status_of(error)
    if status is None:
        # A server that stops answers the calls in its queue with a bare CANCELLED; what this side
        # cancels says so itself.
        if kind is Cancelled and not any(each in message for each in _OURS):
            return Unavailable(f"the server cancelled the call ({message})", code=code)
        if kind is Unavailable:
            message = (
                f"no Cogni server answers there; is it running, is the address right? ({message})"
            )
        if kind is LimitExceeded and "larger than max" in message:
            message = f"the message is larger than the server or this client takes ({message})"
        return kind(message, code=code)
    reason, metadata = "", {}
    violations: list[Violation] = []
    retry_after = None
    for detail in status.details:
        # Unpack answers False, and leaves the message alone, when the detail is of another type.
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
    return kind(
        message,
        code=code,
        reason=reason,
        metadata=metadata,
        violations=tuple(violations),
        retry_after=retry_after,
    )


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    """The google.rpc.Status in the trailers, of a sync or an aio error; None without one."""
    trailers = cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ())
    for key, value in trailers:
        if key == STATUS_TRAILER:
            try:
                return status_pb2.Status.FromString(value)
            except ValueError:
                return None
    return None
