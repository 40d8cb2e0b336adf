"""Why an attempt stops before its graph has come to an end."""

from services.executor.runs import CancelReason, RunError, RunState, ending_of
from services.executor.store.controls import Stop


class RunStoppedError(Exception):
    """Raised inside an attempt to end its run in this state."""

    def __init__(self, state: RunState, error: RunError) -> None:
        super().__init__(error.message)
        self.state = state
        self.error = error


def stopped_by(stop: Stop) -> RunStoppedError:
    """What a request to cancel, or the end of its grant, makes of the run."""
    if stop.cancel_reason is not None:
        return RunStoppedError(*ending_of(stop.cancel_reason))
    expired = stop.grant_state == "EXPIRED"
    return RunStoppedError(
        *ending_of(CancelReason.GRANT_EXPIRED if expired else CancelReason.GRANT_REVOKED)
    )


def timed_out() -> RunStoppedError:
    """What the run's timeout makes of it."""
    return RunStoppedError(*ending_of(CancelReason.TIMEOUT))
