"""The rules of renewing a session: when one is due, who may try, and what a failure means."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.connections.connection import StateReason
from services.connections.providers.failures import FailureKind, ProviderError
from services.connections.providers.provider import Provider, RefreshPolicy
from services.connections.secret import Session

BACKOFF_FIRST = timedelta(seconds=1)
BACKOFF_MAX = timedelta(minutes=5)
_ATTEMPTS_COUNTED_MAX = 16


@dataclass(frozen=True, slots=True)
class RenewalLimits:
    """How long one renewal may take.

    The claim outlasts the provider call and the storing of its answer, so that a living process
    is never overtaken; one that was held up before it sent notices by its own clock and does not
    send. `keep` is how long an answer is tried to be stored: it exists nowhere else.
    """

    provider_call: timedelta = timedelta(seconds=10)
    claim: timedelta = timedelta(seconds=20)
    poll: timedelta = timedelta(milliseconds=50)
    poll_max: timedelta = timedelta(seconds=1)
    keep: timedelta = timedelta(minutes=2)

    def may_send(self, held: timedelta, *, single_use: bool) -> bool:
        """Whether a call may begin that long after the claim.

        A call that uses a token up must be over and stored within the claim: whoever claims next
        would present the token again, and a strict provider then ends the grant.
        """
        storing = self.provider_call / 2
        needs = self.provider_call + storing if single_use else storing
        return self.claim - held >= needs


def renew_time(provider: Provider, session: Session, now: datetime) -> datetime | None:
    """When a session should be renewed; None when it does not expire.

    At most the last fifth of its life is given up: a fixed margin would renew short-lived tokens
    all the time, and each renewal of a rotating token risks losing it.
    """
    if session.expire_time is None or provider.sessions is None:
        return None
    margin = min(provider.renew_before, (session.expire_time - now) / 5)
    return session.expire_time - margin


def put_off_for(failure: ProviderError, attempts: int) -> timedelta:
    """How long nobody should try again after a failure that says nothing about the credential."""
    doubled: timedelta = BACKOFF_FIRST * 2 ** min(attempts - 1, _ATTEMPTS_COUNTED_MAX)
    backoff = min(doubled, BACKOFF_MAX)
    return max(failure.retry_after, backoff) if failure.retry_after else backoff


def is_verdict(failure: ProviderError) -> bool:
    """Whether the provider has said that the credential is no good."""
    return failure.kind is FailureKind.REJECTED


def state_reason(failure: ProviderError, policy: RefreshPolicy, maybe_done: bool) -> StateReason:
    """Why a connection is dead after a verdict.

    A rotating token that is refused after a try whose answer never came was lost by that try.
    """
    if maybe_done and policy in (RefreshPolicy.STRICT, RefreshPolicy.GRACE):
        return StateReason.LOST_ROTATION
    return StateReason(failure.cause.value)
