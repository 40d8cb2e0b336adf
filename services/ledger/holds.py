"""Holds: sums set aside on an account, taken from by charges, kept from stale attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from services.runtime.errors import ServiceError, failed_precondition


class HoldState(IntEnum):
    """Where a hold is in its life; the values are those of the contract and of the table."""

    ACTIVE = 1
    RELEASED = 2
    EXPIRED = 3
    SETTLED = 4


@dataclass(slots=True)
class Hold:
    """A sum set aside, in minor units. `epoch` is the newest attempt's that acted on it."""

    tenant_id: str
    hold_id: str
    account_id: str
    run_id: str
    epoch: int
    state: HoldState
    remaining: int
    spent: int
    unsettled: int
    expire_time: datetime
    create_time: datetime | None = None
    update_time: datetime | None = None
    is_changed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether charges may take from it and attempts may top it up."""
        return self.state in (HoldState.ACTIVE, HoldState.EXPIRED)

    def take(self, amount: int) -> int:
        """Take up to `amount` for a charge; return what was there to take."""
        taken = min(self.remaining, amount)
        self.is_changed = self.is_changed or taken > 0
        self.remaining -= taken
        self.spent += taken
        self.unsettled = min(self.unsettled, self.remaining)
        return taken

    def shrink_to(self, kept: int) -> int:
        """Give back what is above `kept`; return how much."""
        given_back = max(0, self.remaining - kept)
        self.remaining -= given_back
        return given_back

    def fence(self, epoch: int) -> None:
        """Let an attempt act; raise STALE_ATTEMPT when a newer one has acted already."""
        if epoch < self.epoch:
            raise failed_precondition(
                "STALE_ATTEMPT",
                "A newer attempt of this run acts on its hold; this attempt lost its lease and "
                "must stop.",
                metadata={"hold_id": self.hold_id, "epoch": str(self.epoch)},
            )
        self.epoch = epoch

    def check_open(self) -> None:
        """Raise HOLD_CLOSED when the hold was released or settled."""
        if not self.is_open:
            raise hold_closed(self.hold_id)


def hold_closed(hold_id: str) -> ServiceError:
    """The hold is final and can't be used again."""
    return failed_precondition(
        "HOLD_CLOSED",
        f"The hold {hold_id!r} was released or settled; place another one.",
        metadata={"hold_id": hold_id},
    )
