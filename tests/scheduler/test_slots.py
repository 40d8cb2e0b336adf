"""The slot engine against independent oracles, over every kind of clock change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.errors import ServiceError
from services.scheduler.slots import Slots, _Excluder, _WallSource, fire_time, jitter_share
from services.scheduler.specs import (
    CalendarRecurrence,
    CalendarRule,
    CronRecurrence,
    Exclusion,
    IntervalRecurrence,
    IntRange,
    Spec,
    TimeWindow,
    WeekdayRule,
    default_dst_policy,
)
from services.scheduler.wall import (
    ELAPSED,
    ONCE_A_DAY,
    DstEffect,
    DstPolicy,
    FoldPolicy,
    GapPolicy,
)
from services.scheduler.zones import UnknownZoneError, load_zone
from tests.scheduler import oracles

# Whole, half, quarter and 45-minute offsets, 30-minute changes (Lord Howe), two-hour changes
# (Troll), midnight gaps (Beirut, Santiago, Cairo, Asuncion), Ramadan (Casablanca), ends of
# changes (Amman, Tehran), negative winter time (Dublin), and none at all.
ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "America/Asuncion",
    "America/Havana",
    "Australia/Lord_Howe",
    "Australia/Adelaide",
    "Pacific/Chatham",
    "Pacific/Easter",
    "Antarctica/Troll",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Kathmandu",
    "Asia/Almaty",
    "Atlantic/Azores",
    "America/Nuuk",
)
EXPRESSIONS = (
    "30 2 * * *",
    "0 0 * * *",
    "15,45 1-3 * * *",
    "59 23 * * SUN",
    "*/20 * * * *",
    "30 * * * *",
    "*/7 2 * * *",
    "0 */2 * * *",
    "0 0 L * *",
    "5 0 1 * MON",
)
# Where a fold is not a whole hour on the hour, cronsim 2.8 misses repeated times of elapsed
# expressions; the literal oracle covers them.
CRONSIM_MISSES = ("Australia/Lord_Howe", "Pacific/Chatham")


def _utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def _times(spec: Spec, start: datetime, end: datetime) -> list[datetime]:
    return [found.time for found in Slots(spec).between(start, end)]


@cache
def _windows(zone: str) -> list[tuple[datetime, datetime]]:
    around = [_utc(2026, 1, 30)]
    around += oracles.transitions(load_zone(zone), _utc(2023, 1, 1), _utc(2028, 1, 1))
    return [(each - timedelta(hours=16), each + timedelta(hours=16)) for each in around]


@pytest.mark.parametrize("zone", ZONES)
def test_slots_around_every_clock_change_equal_the_literal_oracle(zone: str) -> None:
    for start, end in _windows(zone):
        minutes = oracles.local_minutes(load_zone(zone), start, end)
        for expression in EXPRESSIONS:
            spec = oracles.cron(expression, zone, GapPolicy.SKIP, FoldPolicy.BOTH)
            assert _times(spec, start, end) == oracles.literal(expression, minutes), expression


@pytest.mark.parametrize("zone", ZONES)
def test_default_policies_around_every_clock_change_equal_debian_cron(zone: str) -> None:
    for start, end in _windows(zone):
        for expression in EXPRESSIONS:
            recurrence = CronRecurrence((expression,))
            if zone in CRONSIM_MISSES and default_dst_policy(recurrence) == ELAPSED:
                continue
            spec = Spec(recurrence, default_dst_policy(recurrence), zone)
            expected = oracles.debian(expression, load_zone(zone), start, end)
            assert _times(spec, start, end) == expected, (expression, start)


@given(
    zone=st.sampled_from(ZONES),
    expression=st.sampled_from(EXPRESSIONS),
    gap=st.sampled_from(GapPolicy),
    fold=st.sampled_from(FoldPolicy),
    start=st.integers(0, 5 * 365 * 1440).map(
        lambda minutes: _utc(2023, 1, 1) + timedelta(minutes=minutes)
    ),
    cut=st.timedeltas(timedelta(0), timedelta(days=9)),
)
@settings(max_examples=150)
def test_no_answer_depends_on_where_the_search_begins(
    zone: str, expression: str, gap: GapPolicy, fold: FoldPolicy, start: datetime, cut: timedelta
) -> None:
    slots = Slots(oracles.cron(expression, zone, gap, fold))
    end = start + timedelta(days=9)
    whole = [found.time for found in slots.between(start, end)]
    parts = [*slots.between(start, start + cut), *slots.between(start + cut, end)]
    assert [found.time for found in parts] == whole
    assert whole == sorted(set(whole))
    following = slots.after(start + cut)
    assert following is None or following.time == next(
        (time for time in whole if time > start + cut), following.time
    )
    previous = slots.before(start + cut)
    if before := [time for time in whole if time < start + cut]:
        assert previous is not None
        assert previous.time == before[-1]


@pytest.mark.parametrize(
    ("gap", "expected", "effect"),
    [
        (GapPolicy.SKIP, [], None),
        (GapPolicy.SHIFT, [_utc(2027, 3, 28, 1, 30)], DstEffect.SHIFTED),
        (GapPolicy.GAP_END, [_utc(2027, 3, 28, 1, 0)], DstEffect.MOVED_TO_GAP_END),
    ],
)
def test_a_time_inside_a_gap_goes_where_the_policy_says(
    gap: GapPolicy, expected: list[datetime], effect: DstEffect | None
) -> None:
    slots = Slots(oracles.cron("30 2 * * *", "Europe/Berlin", gap, FoldPolicy.FIRST))
    found = list(slots.between(_utc(2027, 3, 27, 12), _utc(2027, 3, 28, 12)))
    assert [each.time for each in found] == expected
    assert [each.effect for each in found] == [effect] * len(expected)


@pytest.mark.parametrize(
    ("fold", "expected"),
    [
        (FoldPolicy.FIRST, [_utc(2027, 10, 31, 0, 30)]),
        (FoldPolicy.LAST, [_utc(2027, 10, 31, 1, 30)]),
        (FoldPolicy.BOTH, [_utc(2027, 10, 31, 0, 30), _utc(2027, 10, 31, 1, 30)]),
    ],
)
def test_a_time_inside_a_fold_happens_as_often_as_the_policy_says(
    fold: FoldPolicy, expected: list[datetime]
) -> None:
    spec = oracles.cron("30 2 * * *", "Europe/Berlin", GapPolicy.SKIP, fold)
    assert _times(spec, _utc(2027, 10, 30, 12), _utc(2027, 10, 31, 12)) == expected


def test_several_times_inside_one_gap_become_one_at_its_end() -> None:
    spec = oracles.cron("*/10 2 * * *", "Europe/Berlin", GapPolicy.GAP_END, FoldPolicy.FIRST)
    assert _times(spec, _utc(2027, 3, 27, 12), _utc(2027, 3, 28, 12)) == [_utc(2027, 3, 28, 1)]


def test_a_day_that_never_was_is_shifted_whole_to_the_next() -> None:
    # Samoa went from 29 to 31 December 2011.
    spec = oracles.cron("0 10 30 12 *", "Pacific/Apia", GapPolicy.SHIFT, FoldPolicy.FIRST)
    assert _times(spec, _utc(2011, 12, 1), _utc(2012, 2, 1)) == [_utc(2011, 12, 30, 20)]


def test_intervals_keep_elapsed_time_through_clock_changes_and_before_their_anchor() -> None:
    anchor = _utc(2027, 3, 28, 0, 10)
    spec = Spec(IntervalRecurrence(timedelta(minutes=40), anchor), ONCE_A_DAY, "Europe/Berlin")
    assert _times(spec, _utc(2027, 3, 27, 23), _utc(2027, 3, 28, 2)) == [
        _utc(2027, 3, 27, 23, 30),
        anchor,
        _utc(2027, 3, 28, 0, 50),
        _utc(2027, 3, 28, 1, 30),
    ]


def test_calendar_rules_count_from_the_end_of_the_month() -> None:
    rule = CalendarRule(
        weekdays=(WeekdayRule(5, -1),), hours=(IntRange(9, 9),), seconds=(IntRange(0, 30, 30),)
    )
    spec = Spec(CalendarRecurrence((rule,)), ONCE_A_DAY)
    assert _times(spec, _utc(2026, 2, 1), _utc(2026, 4, 1)) == [
        _utc(2026, 2, 27, 9),
        _utc(2026, 2, 27, 9) + timedelta(seconds=30),
        _utc(2026, 3, 27, 9),
        _utc(2026, 3, 27, 9) + timedelta(seconds=30),
    ]


def test_exclusions_remove_days_of_the_local_calendar_and_windows_of_time() -> None:
    spec = Spec(
        CronRecurrence(("0 */6 * * *",)),
        ELAPSED,
        "America/New_York",
        exclusions=(
            Exclusion(rule=CalendarRule(days_of_month=(IntRange(25, 25),))),
            Exclusion(window=TimeWindow(_utc(2026, 12, 26, 5), _utc(2026, 12, 26, 17))),
        ),
    )
    assert _times(spec, _utc(2026, 12, 24, 20), _utc(2026, 12, 27)) == [
        _utc(2026, 12, 24, 23),
        _utc(2026, 12, 26, 17),
        _utc(2026, 12, 26, 23),
    ]


def test_a_search_crosses_years_of_exclusions_quickly() -> None:
    spec = Spec(
        CronRecurrence(("* * * * *",)),
        ELAPSED,
        exclusions=(Exclusion(rule=CalendarRule(years=(IntRange(2026, 2029),))),),
    )
    found = Slots(spec).after(_utc(2026, 1, 1))
    assert found is not None
    assert found.time == _utc(2030, 1, 1)


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6 *", "0 0 * 2 MON#5"])
def test_what_never_fires_or_rarely_fires_is_found_out(expression: str) -> None:
    found = Slots(oracles.cron(expression, "Europe/Berlin", *_debian())).after(_utc(2026, 1, 1))
    if expression.endswith("#5"):
        assert found is not None
        assert found.time == _utc(2044, 2, 28, 23)
    else:
        assert found is None


def _debian() -> tuple[GapPolicy, FoldPolicy]:
    return ONCE_A_DAY.gap, ONCE_A_DAY.fold


def test_start_and_end_bound_the_slots_half_open() -> None:
    spec = Spec(
        CronRecurrence(("0 * * * *",)),
        ELAPSED,
        start_time=_utc(2026, 1, 1, 3),
        end_time=_utc(2026, 1, 1, 5),
    )
    assert _times(spec, _utc(2025, 1, 1), _utc(2027, 1, 1)) == [
        _utc(2026, 1, 1, 3),
        _utc(2026, 1, 1, 4),
    ]
    assert Slots(spec).after(_utc(2026, 1, 1, 4)) is None


@pytest.mark.parametrize("name", ["Europe/Nowhere", "", "../etc/passwd", "Europe", "posix/UTC"])
def test_unknown_zones_are_refused(name: str) -> None:
    with pytest.raises(UnknownZoneError):
        load_zone(name)


def test_the_jitter_of_a_schedule_is_fixed_spread_and_ends_before_the_next_slot() -> None:
    spec = Spec(CronRecurrence(("* * * * *",)), ELAPSED, jitter=timedelta(hours=1))
    shares = [jitter_share(f"schedule-{number}") for number in range(1000)]
    assert shares[0] == jitter_share("schedule-0")
    assert 0.45 < sum(shares) / 1000 < 0.55
    slot = _utc(2026, 1, 1)
    fires = [fire_time(slot, slot + timedelta(minutes=1), spec, share) for share in shares]
    assert min(fires) >= slot
    assert max(fires) < slot + timedelta(minutes=1)
    assert len(set(fires)) > 50


def test_a_policy_is_a_value() -> None:
    assert DstPolicy(GapPolicy.SKIP, FoldPolicy.BOTH) == ELAPSED


@pytest.mark.parametrize("hour", [IntRange(0, 23), IntRange(12, 12)])
def test_the_walk_to_a_dense_day_costs_little(
    hour: IntRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[datetime] = []
    look = _WallSource._window
    monkeypatch.setattr(
        _WallSource, "_window", lambda self, at, end: windows.append(at) or look(self, at, end)
    )
    rule = CalendarRule(
        months=(IntRange(2, 2),),
        days_of_month=(IntRange(29, 29),),
        hours=(hour,),
        minutes=(IntRange(0, 59),),
        seconds=(IntRange(0, 59),),
    )
    spec = Spec(CalendarRecurrence((rule,) * 50), ONCE_A_DAY, "Europe/Berlin")
    found = Slots(spec).after(datetime(2026, 1, 1, tzinfo=UTC))
    assert found is not None
    assert found.time == datetime(2028, 2, 28, 23, tzinfo=UTC) + timedelta(hours=hour.start)
    assert len(windows) < 100


def _without(rule: CalendarRule, every: timedelta, times: int = 1) -> Slots:
    anchor = datetime(2026, 1, 1, tzinfo=UTC)
    exclusions = (Exclusion(rule=rule),) * times
    return Slots(Spec(IntervalRecurrence(every, anchor), ELAPSED, exclusions=exclusions))


def test_a_search_through_many_exclusions_finds_what_single_steps_find() -> None:
    hourly = _without(CalendarRule(minutes=(IntRange(0, 58),)), timedelta(seconds=20))
    week = list(hourly.between(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)))
    assert len(week) == 31 * 24 * 3
    assert hourly.last(2, week[0].time, week[-1].time) == week[-3:-1]
    assert hourly.after(week[-1].time).time == datetime(2026, 2, 1, 0, 59, tzinfo=UTC)


def test_exclusions_of_everything_end_a_search_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[datetime] = []
    look = _Excluder.until
    monkeypatch.setattr(_Excluder, "until", lambda self, at: looks.append(at) or look(self, at))
    monkeypatch.setattr("services.scheduler.slots._GAP_CHECKS_MAX", 1000)
    everything = CalendarRule(hours=(IntRange(0, 23),), seconds=(IntRange(0, 58),))
    slots = _without(everything, timedelta(minutes=1), 100)
    assert slots.after(datetime(2026, 1, 1, tzinfo=UTC)) is None
    assert len(looks) <= 1100


def test_a_search_that_exclusions_make_too_long_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.scheduler.slots._CHECKS_MAX", 5000)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    sparse = _without(CalendarRule(seconds=(IntRange(1, 59),)), timedelta(seconds=1), 10)
    with pytest.raises(ServiceError, match="looks at exclusions") as refused:
        list(sparse.between(start, start + timedelta(days=30)))
    assert refused.value.reason == "LIMIT_EXCEEDED"
    latest = sparse.last(1000, start, start + timedelta(days=30))
    assert latest[-1].time == start + timedelta(days=30) - timedelta(minutes=1)
    assert 1 <= len(latest) < 1000
