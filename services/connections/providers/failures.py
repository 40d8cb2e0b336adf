"""How a call to a provider can fail, and what each failure means to the caller of an RPC."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from services.connections.secret import Session
from services.runtime.errors import ErrorKind, ServiceError

DEFAULT_RETRY_AFTER = timedelta(seconds=5)
# A provider may ask for more patience than a caller can have; what it asked is kept in the row.
RETRY_AFTER_MAX = timedelta(hours=24)


class FailureKind(StrEnum):
    """What went wrong; each value is an ErrorReason."""

    REJECTED = "CREDENTIAL_REJECTED"
    UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    RATE_LIMITED = "PROVIDER_RATE_LIMITED"
    ANSWER_INVALID = "PROVIDER_ANSWER_INVALID"
    EGRESS_DENIED = "EGRESS_DENIED"


class Cause(StrEnum):
    """Why a credential was rejected; each value is a ConnectionStateReason."""

    CREDENTIAL_REJECTED = "CREDENTIAL_REJECTED"
    WITHDRAWN_AT_PROVIDER = "WITHDRAWN_AT_PROVIDER"
    EXPIRED = "EXPIRED"
    ACCOUNT_SUSPENDED = "ACCOUNT_SUSPENDED"


class ProviderError(Exception):
    """A failed call to a provider. Its message is ours and never quotes the answer.

    `maybe_done` is True when the provider may have acted all the same: the request left, and no
    answer that settles it came back. `rotated` is what of an answer has to be kept although the
    answer is of no use: the token that was presented for it works no more. `for_good` says of a
    rejection that nobody can ever undo it.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        cause: Cause = Cause.CREDENTIAL_REJECTED,
        retry_after: timedelta | None = None,
        maybe_done: bool = False,
        rotated: Session | None = None,
        for_good: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.cause = cause
        self.retry_after = min(retry_after, RETRY_AFTER_MAX) if retry_after else None
        self.maybe_done = maybe_done
        self.rotated = rotated
        self.for_good = for_good

    def to_service_error(self) -> ServiceError:
        """The same failure as the caller of an RPC sees it."""
        match self.kind:
            case FailureKind.UNAVAILABLE:
                kind = ErrorKind.UNAVAILABLE
            case FailureKind.RATE_LIMITED:
                kind = ErrorKind.RESOURCE_EXHAUSTED
            case _:
                kind = ErrorKind.FAILED_PRECONDITION
        retryable = kind is not ErrorKind.FAILED_PRECONDITION
        return ServiceError(
            kind,
            self.kind.value,
            self.message,
            retry_after=(self.retry_after or DEFAULT_RETRY_AFTER) if retryable else None,
        )


def rejected(
    message: str, cause: Cause = Cause.CREDENTIAL_REJECTED, *, for_good: bool = False
) -> ProviderError:
    """The provider knows the credential and refuses it."""
    return ProviderError(FailureKind.REJECTED, message, cause=cause, for_good=for_good)


def answer_invalid(message: str, *, maybe_done: bool = True) -> ProviderError:
    """The answer is not what the provider's API promises."""
    return ProviderError(FailureKind.ANSWER_INVALID, message, maybe_done=maybe_done)
