"""Sets money aside at the Ledger for the run of an attempt, under its run token."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

import grpc

from cogni.ledger.v1.ledger_service_pb2 import PlaceHoldRequest, ReleaseHoldRequest
from cogni.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from cogni.type.v1.amount_pb2 import Amount as AmountMessage
from services.executor.amounts import Amount
from services.executor.runner.journal import Holding, LeaseLostError
from services.executor.runner.stopping import RunStoppedError
from services.executor.runner.threads import in_thread
from services.executor.runner.tokens import RunTokens
from services.executor.runs import CancelReason, ending_of
from services.runtime.errors import ErrorKind, PeerError
from services.runtime.ids import new_id

_log = logging.getLogger(__name__)

_THREADS = 4
#: A hold that nobody prolongs gives back after this long what no pending call needs.
LIFETIME = timedelta(minutes=15)
_PAUSE_SECONDS_FIRST = 0.2
_PAUSE_SECONDS_MAX = 5.0
#: What a restart, an overload or an operator repairs. All else is the Ledger's answer.
_UNANSWERED = frozenset(
    {
        *(ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE_EXCEEDED, ErrorKind.RESOURCE_EXHAUSTED),
        *(ErrorKind.INTERNAL, ErrorKind.UNAUTHENTICATED),
    }
)
_ENDED_GRANTS = {
    "GRANT_REVOKED": CancelReason.GRANT_REVOKED,
    "GRANT_EXPIRED": CancelReason.GRANT_EXPIRED,
}
#: Another attempt holds the run, or the run is over.
_LOST = frozenset({"LEASE_LOST", "STALE_ATTEMPT", "HOLD_CLOSED"})


class Holds(Protocol):
    """Where money is set aside for runs.

    Both raise LeaseLostError when a newer attempt has acted or the run is closed, RunStoppedError
    when the grant has ended, and PeerError when the Ledger refuses.
    """

    async def place(
        self, holding: Holding, account_id: str, least: Amount, unsettled: Amount
    ) -> Decimal:
        """See that the run's hold has at least so much, and prolong it; returns what it has left.

        Waits for a Ledger that does not answer, for as long as it is let.
        """

    async def shrink(self, holding: Holding, unsettled: Amount) -> None:
        """Give back what is above the unsettled sum; the run may come back to its hold.

        A Ledger that does not answer is not asked again: PeerError.
        """


class LedgerHolds:
    """Holds at the Ledger. Synchronous gRPC in threads, as for credentials."""

    def __init__(
        self,
        channel: Callable[[], grpc.Channel],
        tokens: RunTokens,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._channel = channel
        self._tokens = tokens
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="holds")
        self._stub: LedgerServiceStub | None = None

    async def place(
        self, holding: Holding, account_id: str, least: Amount, unsettled: Amount
    ) -> Decimal:
        """See `Holds.place`."""
        pause = _PAUSE_SECONDS_FIRST
        while True:
            # A new request each time: the sum is a floor, so whether an unanswered request was
            # done or not, this one makes the same hold of it.
            request = PlaceHoldRequest(
                request_id=new_id(),
                run_id=holding.run_id,
                account_id=account_id,
                amount=_message(least),
                unsettled=_message(unsettled),
            )
            request.expire_time.FromDatetime(self._clock() + LIFETIME)
            try:
                response = await self._call(holding, "PlaceHold", request)
                return Decimal(response.hold.remaining.value)
            except PeerError as error:
                if error.kind not in _UNANSWERED:
                    raise
                _log.warning("run %s waits for its hold: %s", holding.run_id, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)

    async def shrink(self, holding: Holding, unsettled: Amount) -> None:
        """See `Holds.shrink`."""
        request = ReleaseHoldRequest(
            request_id=new_id(), hold_id=holding.run_id, unsettled=_message(unsettled)
        )
        await self._call(holding, "ReleaseHold", request)

    def close(self) -> None:
        """Set nothing aside any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, holding: Holding, method: str, request: Any) -> Any:
        try:
            token = await self._tokens.token(holding)
            return await in_thread(self._threads, self._send, method, request, token)
        except PeerError as error:
            if error.reason in _LOST:
                raise LeaseLostError(holding.run_id) from None
            if error.reason in _ENDED_GRANTS:
                raise RunStoppedError(*ending_of(_ENDED_GRANTS[error.reason])) from None
            raise

    def _send(self, method: str, request: Any, token: str) -> Any:
        if self._stub is None:
            self._stub = LedgerServiceStub(self._channel())
        metadata = (("authorization", f"Bearer {token}"),)
        return getattr(self._stub, method)(request, metadata=metadata)


def _message(amount: Amount) -> AmountMessage:
    return AmountMessage(asset=amount.asset, value=amount.plain)
