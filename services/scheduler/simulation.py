"""Plays a schedule through a span of time, by the rules that fire, without starting anything."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.runtime.errors import limit
from services.scheduler.catchup import Pause, PlannedSlot, plan
from services.scheduler.overlap import OverlapView, Unfinished, decide, next_turn
from services.scheduler.schedules import CatchUpPolicy, OverlapPolicy
from services.scheduler.slot_records import SlotReason, SlotState
from services.scheduler.slots import Occurrence, Slots, fire_time
from services.scheduler.specs import Spec, TimeWindow

# A second or two of one core.
SIMULATED_MAX = 20_000
_MOMENT = timedelta(microseconds=1)
RUN_DURATION_DEFAULT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is played, and what is assumed about its runs."""

    spec: Spec
    share: float
    overlap_policy: OverlapPolicy
    catch_up: CatchUpPolicy
    remaining_actions: int | None
    start_time: datetime
    end_time: datetime
    run_duration: timedelta
    outages: tuple[TimeWindow, ...] = ()


@dataclass(slots=True)
class SimulatedSlot:
    """What would become of one slot."""

    scheduled_time: datetime
    fire_time: datetime
    state: SlotState
    reason: SlotReason
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(slots=True)
class Simulation:
    """What would become of all of them."""

    slots: list[SimulatedSlot] = field(default_factory=list)
    buffered_count: int = 0
    cancelled_runs: int = 0
    concurrent_runs_max: int = 0

    def count(self, state: SlotState) -> int:
        """How many slots would come into a state."""
        return sum(slot.state is state for slot in self.slots)


def simulate(scenario: Scenario) -> Simulation:
    """Plays the scenario; raises LIMIT_EXCEEDED beyond SIMULATED_MAX slots."""
    return _Player(scenario).play()


class _Player:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._simulation = Simulation()
        self._left = scenario.remaining_actions
        # Runs under way, by their end; slots that wait, by their nominal time.
        self._running: list[tuple[datetime, datetime]] = []
        self._waiting: dict[datetime, SimulatedSlot] = {}
        self._by_time: dict[datetime, SimulatedSlot] = {}

    def play(self) -> Simulation:
        for moment, due in self._firings():
            self._run_until(moment)
            for slot in due:
                if self._left == 0:
                    return self._finish()
                self._fire(slot, moment)
        return self._finish()

    def _finish(self) -> Simulation:
        self._run_until(None)
        return self._simulation

    def _firings(self) -> Iterator[tuple[datetime, tuple[PlannedSlot, ...]]]:
        """Moments at which the clock finds something due, and what it finds."""
        scenario = self._scenario
        outages = sorted(scenario.outages, key=lambda outage: outage.start_time)
        position: datetime | None = scenario.start_time - _MOMENT
        while position is not None:
            start, position = position + _MOMENT, None
            for found, fire in self._timed(start):
                outage = next((o for o in outages if o.start_time <= fire < o.end_time), None)
                if outage is None:
                    yield fire, (PlannedSlot(found.time, fire, SlotState.PENDING, SlotReason.DUE),)
                    continue
                back = _end_of_outage(outages, outage)
                planned = plan(
                    scenario.spec,
                    scenario.share,
                    found.time - _MOMENT,
                    back,
                    scenario.catch_up,
                    Pause(),
                )
                yield back, planned.slots
                # On from there, not slot by slot: an outage may pass over billions of them.
                position = planned.position_time
                break

    def _timed(self, start: datetime) -> Iterator[tuple[Occurrence, datetime]]:
        scenario = self._scenario
        engine = Slots(scenario.spec)
        previous: Occurrence | None = None
        for found in engine.between(start, scenario.end_time):
            if previous is not None:
                yield previous, self._fire_time(previous, found.time)
            previous = found
        if previous is not None:
            following = engine.after(previous.time)
            yield previous, self._fire_time(previous, following.time if following else None)

    def _fire_time(self, found: Occurrence, following: datetime | None) -> datetime:
        return fire_time(found.time, following, self._scenario.spec, self._scenario.share)

    def _fire(self, planned: PlannedSlot, moment: datetime) -> None:
        slot = SimulatedSlot(
            planned.scheduled_time, planned.fire_time, planned.state, planned.reason
        )
        self._simulation.slots.append(slot)
        if len(self._simulation.slots) > SIMULATED_MAX:
            raise limit("SimulateSchedule", f"A simulation has at most {SIMULATED_MAX} slots.")
        if planned.state is not SlotState.PENDING:
            return
        decision = decide(self._scenario.overlap_policy, self._view(), planned.reason)
        slot.state, slot.reason = decision.state, decision.reason
        for time in decision.displaced:
            displaced = self._waiting.pop(time)
            displaced.state, displaced.reason = SlotState.SKIPPED, SlotReason.OVERLAP
        self._cancel(decision.cancel_runs_of, moment)
        if decision.state is SlotState.PENDING:
            self._start(slot, moment)
        elif decision.state is SlotState.BUFFERED:
            self._simulation.buffered_count += 1
            self._waiting[slot.scheduled_time] = slot
            self._give_turn(moment)
        if self._left is not None and decision.state is not SlotState.SKIPPED:
            self._left -= 1

    def _view(self) -> OverlapView:
        running = tuple(Unfinished(time, SlotState.STARTED) for _, time in self._running)
        waiting = tuple(Unfinished(time, SlotState.BUFFERED) for time in sorted(self._waiting))
        return OverlapView(running + waiting)

    def _cancel(self, times: tuple[datetime, ...], moment: datetime) -> None:
        for time in times:
            self._by_time[time].end_time = moment
        self._simulation.cancelled_runs += len(times)
        self._running = [run for run in self._running if run[1] not in times]
        heapq.heapify(self._running)

    def _start(self, slot: SimulatedSlot, moment: datetime) -> None:
        slot.state = SlotState.STARTED
        slot.start_time = moment
        slot.end_time = moment + self._scenario.run_duration
        self._by_time[slot.scheduled_time] = slot
        heapq.heappush(self._running, (slot.end_time, slot.scheduled_time))
        most = max(self._simulation.concurrent_runs_max, len(self._running))
        self._simulation.concurrent_runs_max = most

    def _run_until(self, moment: datetime | None) -> None:
        """Let runs end, and waiting slots take their turns, up to a moment (None: all)."""
        while self._running and (moment is None or self._running[0][0] <= moment):
            ended, _ = heapq.heappop(self._running)
            self._give_turn(ended)

    def _give_turn(self, moment: datetime) -> None:
        turn = next_turn(self._view())
        if turn is not None:
            slot = self._waiting.pop(turn)
            slot.reason = SlotReason.TURN_CAME
            self._start(slot, moment)


def _end_of_outage(outages: list[TimeWindow], first: TimeWindow) -> datetime:
    """When the clock is back after an outage and those that follow it without a break."""
    back = first.end_time
    for outage in outages:
        if outage.start_time <= back < outage.end_time:
            back = outage.end_time
    return back
