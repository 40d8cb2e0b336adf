"""What one attempt may still spend: the hold its run works under, and the calls it must cover."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from decimal import ROUND_CEILING, Decimal

from services.executor.amounts import Amount
from services.executor.runner.holds import LIFETIME, Holds
from services.executor.runner.journal import (
    Holding,
    JournalUnavailableError,
    LeaseLostError,
)
from services.executor.runner.stopping import RunStoppedError
from services.executor.runs import RunError, RunState
from services.executor.store.usage import Outstanding, PendingCall
from services.runtime.errors import PeerError, ServiceError

_log = logging.getLogger(__name__)

_ZERO = Decimal(0)
#: The Ledger's smallest sum of US dollars.
_STEP = Decimal("1e-12")
#: A hold is raised by what so many more calls like the earlier ones cost, and at most doubled.
_CALLS_AHEAD = 16
_RENEW_SECONDS = LIFETIME.total_seconds() / 3
#: After this long the hold may have expired at the Ledger, whose clock is not ours.
_TRUSTED_SECONDS = LIFETIME.total_seconds() - 60
#: A call is refused on figures that may count a charge twice only after the Ledger's answer about
#: that charge had this long to arrive.
_RECORDING_SECONDS_MAX = 5.0
_PAUSE_SECONDS = 0.2
_SHRINK_SECONDS_MAX = 2.0
#: How often, and with which pauses, the run's calls are read while the database is away.
_READS_MAX = 30
_READ_PAUSE_SECONDS = 1.0
#: Each try asks for what the last answer showed to be missing.
_TRIES_MAX = 5
#: Refusals that more money, or a larger budget, would turn.
_SHORT = {"INSUFFICIENT_FUNDS": "available", "BUDGET_EXHAUSTED": "left"}
#: An account without a limit, and one that keeps another asset than models are priced in.
_UNBOUND = frozenset({"ACCOUNT_NOT_ALLOWED", "ASSET_MISMATCH"})

#: Reads which calls of the run the Ledger has not charged yet.
ReadOutstanding = Callable[[], Awaitable[Outstanding]]


class RunHold:
    """Covers each call of one attempt before it is sent, and asks the Ledger only when it must.

    What is left of the hold is what the Ledger said last, less the upper bounds of calls under way
    and the costs of those that ended since; tools take nothing of it while the account has other
    money. Every answer of the Ledger replaces that reckoning, so nothing it does not know of (a
    price card, a lost attempt) adds up.
    """

    def __init__(
        self, holds: Holds, holding: Holding, account_id: str, outstanding: ReadOutstanding
    ) -> None:
        self._holds = holds
        self._holding = holding
        self._account_id = account_id
        self._read_outstanding = outstanding
        self._remaining = _ZERO
        #: What each call of this attempt may take, or took, of `_remaining`; not those that the
        #: Ledger had charged when it told us. `_earlier` is the same of earlier attempts' calls.
        self._figures: dict[str, Decimal] = {}
        self._total = _ZERO
        self._earlier = _ZERO
        self._own: set[str] = set()
        self._open: set[str] = set()
        #: Calls that wait for the hold to be raised; the others are covered.
        self._waiting: set[str] = set()
        self._asset = ""
        #: What the Ledger charges for what costs one by our prices, as far as it can be told.
        self._rate = Decimal(1)
        self._settled_calls = 0
        self._settled_cost = _ZERO
        self._trusted_until = 0.0
        self._unbound = False
        self._turn = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    @property
    def placed(self) -> bool:
        """Whether this attempt has set anything aside."""
        return self._trusted_until > 0 and not self._unbound

    async def cover(self, call: PendingCall) -> None:
        """Return when the hold has room for the most the call can cost.

        Raises RunStoppedError with BUDGET_EXHAUSTED when neither the hold nor the account has it,
        LeaseLostError, and JournalUnavailableError when the database stays away. A call of unknown
        price, or of none, needs no room.
        """
        if call.upper_cost is None or call.upper_cost.value == _ZERO or self._unbound:
            return
        cost, self._asset = call.upper_cost.value, call.upper_cost.asset
        fits = not self._waiting and self._fits(cost)
        self._note(call.call_id, cost)
        self._own.add(call.call_id)
        self._open.add(call.call_id)
        if fits:
            return
        self._waiting.add(call.call_id)
        try:
            async with self._turn:
                await self._raise_for(call.call_id, call.model)
        except BaseException:
            # Nothing was sent yet.
            self.forget(call.call_id)
            raise
        finally:
            self._waiting.discard(call.call_id)

    def settled(self, call_id: str, cost: Amount | None) -> None:
        """Note what the call did cost: the rest of its upper bound is free again."""
        if call_id not in self._figures:
            return
        self._open.discard(call_id)
        value = cost.value if cost is not None else _ZERO
        self._note(call_id, value)
        self._settled_calls += 1
        self._settled_cost += value

    def forget(self, call_id: str) -> None:
        """Note that the call is not going to be sent."""
        self._open.discard(call_id)
        self._total -= self._figures.pop(call_id, _ZERO)

    async def shrink(self) -> None:
        """Give back what no unsettled call needs, if there is a hold.

        Best effort, within seconds: what fails is given back by the run's close, or by the
        hold's expiry.
        """
        self.close()
        if not self.placed:
            return
        try:
            async with asyncio.timeout(_SHRINK_SECONDS_MAX), self._turn:
                kept = self._owed(await self._read_outstanding())
                await self._holds.shrink(self._holding, self._amount(kept))
        except LeaseLostError:
            return
        except Exception as error:
            _log.info("the hold of run %s stays as it is: %s", self._holding.run_id, error)

    def close(self) -> None:
        """Prolong the hold no more."""
        if self._renewing is not None:
            self._renewing.cancel()

    def _fits(self, cost: Decimal) -> bool:
        if asyncio.get_running_loop().time() > self._trusted_until:
            return False
        return self._charged(self._total + self._earlier + cost) <= self._remaining

    async def _raise_for(self, call_id: str, model: str) -> None:
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + _RECORDING_SECONDS_MAX
        for _ in range(_TRIES_MAX):
            if self._is_covered(call_id) or self._unbound:
                return
            while (refusal := await self._ask(call_id)) is not None:
                in_doubt = (await self._outstanding()).settled.keys() - self._open
                if not in_doubt or loop.time() > patient_until:
                    raise self._exhausted(call_id, model, refusal)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(self, call_id: str) -> PeerError | None:
        """Raise the hold, generously if that can be had; return why it cannot be raised at all."""
        outstanding = await self._outstanding()
        ahead, owed = self._ahead(), self._owed(outstanding)
        # Enough for the calls that wait behind this one too, and for some more, if it is there.
        generous = len(self._waiting) > 1 or ahead > _ZERO
        if generous and await self._place(owed + ahead, owed, outstanding) is None:
            return None
        owed -= self._waiting_for(call_id)
        return await self._place(owed, owed, outstanding)

    async def _place(
        self, least: Decimal, unsettled: Decimal, outstanding: Outstanding
    ) -> PeerError | None:
        asked = asyncio.get_running_loop().time()
        try:
            remaining = await self._holds.place(
                self._holding, self._account_id, self._amount(least), self._amount(unsettled)
            )
        except PeerError as error:
            if error.reason in _SHORT:
                return error
            if error.reason in _UNBOUND:
                _log.info("run %s works without a hold: %s", self._holding.run_id, error.message)
                self._unbound = True
                return None
            raise _failed(f"The Ledger sets no money aside: {error.message}") from None
        self._trusted_until = asked + _TRUSTED_SECONDS
        self._take_over(remaining, outstanding)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew_forever())
        return None

    def _take_over(self, remaining: Decimal, outstanding: Outstanding) -> None:
        """Reckon from what the Ledger says, without the calls it had charged before it was asked.

        A charge that it made since counts twice until the next answer: too little is free then,
        never too much.
        """
        self._remaining = remaining
        self._figures = self._uncharged(outstanding)
        self._total = sum(self._figures.values(), _ZERO)
        self._earlier = self._of_earlier_attempts(outstanding)
        if outstanding.recorded > _ZERO:
            # Of the charges of model calls alone: what tools cost says nothing about the next one.
            self._rate = max(self._rate, outstanding.charged / outstanding.recorded)

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            # What ends the run is noticed where it acts; the rest is tried again.
            with contextlib.suppress(LeaseLostError, RunStoppedError, JournalUnavailableError):
                async with self._turn:
                    outstanding = await self._outstanding()
                    owed = self._owed(outstanding) - self._waiting_for(None)
                    await self._place(_ZERO, owed, outstanding)

    async def _outstanding(self) -> Outstanding:
        if self._holding.attempt == 1 and self._figures.keys() <= self._waiting:
            # Nothing was ever sent for this run.
            return Outstanding({}, {}, _ZERO, _ZERO)
        for _ in range(_READS_MAX):
            try:
                return await self._read_outstanding()
            except (ServiceError, OSError) as error:
                _log.warning("the calls of run %s cannot be read (%s)", self._holding.run_id, error)
                await asyncio.sleep(_READ_PAUSE_SECONDS)
        raise JournalUnavailableError("what the run has spent could not be read")

    def _owed(self, outstanding: Outstanding) -> Decimal:
        """What the hold must have for every call that the Ledger has not charged."""
        own = sum(self._uncharged(outstanding).values(), _ZERO)
        return own + self._of_earlier_attempts(outstanding)

    def _uncharged(self, outstanding: Outstanding) -> dict[str, Decimal]:
        """The attempt's own figures of such calls; what is stored may lag behind them."""
        return {
            call_id: figure
            for call_id, figure in self._figures.items()
            if call_id in self._open
            or call_id in outstanding.settled
            or call_id in outstanding.pending
        }

    def _of_earlier_attempts(self, outstanding: Outstanding) -> Decimal:
        stored = (*outstanding.pending.items(), *outstanding.settled.items())
        return sum((figure for call_id, figure in stored if call_id not in self._own), _ZERO)

    def _waiting_for(self, call_id: str | None) -> Decimal:
        """What the calls need that wait for this one's turn to end."""
        behind = (self._figures[each] for each in self._waiting if each != call_id)
        return sum(behind, _ZERO)

    def _is_covered(self, call_id: str) -> bool:
        return self._fits(-self._waiting_for(call_id))

    def _ahead(self) -> Decimal:
        if not self._settled_calls:
            return _ZERO
        return self._settled_cost * min(Decimal(1), _CALLS_AHEAD / Decimal(self._settled_calls))

    def _note(self, call_id: str, figure: Decimal) -> None:
        self._total += figure - self._figures.get(call_id, _ZERO)
        self._figures[call_id] = figure

    def _charged(self, cost: Decimal) -> Decimal:
        return (cost * self._rate).quantize(_STEP, ROUND_CEILING)

    def _amount(self, cost: Decimal) -> Amount:
        return Amount(self._asset, max(_ZERO, self._charged(cost)))

    def _exhausted(self, call_id: str, model: str, refusal: PeerError) -> RunStoppedError:
        most = self._amount(self._figures[call_id])
        used = self._total + self._earlier - self._figures[call_id]
        free = self._amount(self._remaining / self._rate - used)
        left = refusal.metadata.get(_SHORT[refusal.reason], "0")
        where = "not set aside" if refusal.reason == "INSUFFICIENT_FUNDS" else "left in its budget"
        what = "Fund the account" if refusal.reason == "INSUFFICIENT_FUNDS" else "Raise the budget"
        return _failed(
            f"The call to {model} can cost {most.plain} {most.asset}. The run has {free.plain} set "
            f"aside for it, and the account {self._account_id} has {left} {where}. {what}, or "
            "bound the call (max_tokens), and replay the run."
        )


def _failed(message: str) -> RunStoppedError:
    return RunStoppedError(RunState.FAILED, RunError("BUDGET_EXHAUSTED", message))
