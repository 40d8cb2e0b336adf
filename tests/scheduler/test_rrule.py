"""Recurrence rules against dateutil, which walks from the beginning where we do not."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Any

import pytest
from dateutil.rrule import rrulestr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.scheduler.rrule import Rrule, RruleError, parse_rrule
from services.scheduler.slots import Slots
from services.scheduler.specs import RruleRecurrence, Spec
from services.scheduler.wall import ONCE_A_DAY

START = datetime(2024, 1, 31, 9, 30)  # noqa: DTZ001 - a wall time
#: dateutil counts the first week's positions from the rule's beginning, we from the week's.
FIRST_WEEK = timedelta(days=8)

EVERY_SECOND = ";".join(
    f"{name}={','.join(map(str, range(count)))}"
    for name, count in (("BYHOUR", 24), ("BYMINUTE", 60), ("BYSECOND", 60))
)


def _joined(values: Any) -> str:
    return ",".join(str(value) for value in values)


@st.composite
def rules(draw: Any) -> str:
    """Rules of every frequency, with parts that go together."""
    frequency = draw(st.sampled_from(["YEARLY", "MONTHLY", "WEEKLY", "DAILY"]))
    parts = [f"FREQ={frequency}", f"INTERVAL={draw(st.integers(1, 5))}"]
    if draw(st.booleans()):
        parts.append(f"WKST={draw(st.sampled_from(['MO', 'SU', 'WE']))}")
    if draw(st.booleans()):
        months = draw(st.sets(st.integers(1, 12), min_size=1, max_size=5))
        parts.append(f"BYMONTH={_joined(months)}")
    by_day = False
    if frequency != "WEEKLY" and draw(st.booleans()):
        days = draw(st.sets(st.integers(-31, 31).filter(bool), min_size=1, max_size=4))
        parts.append(f"BYMONTHDAY={_joined(days)}")
        by_day = True
    if frequency == "YEARLY" and not by_day and draw(st.booleans()):
        days = draw(st.sets(st.integers(-366, 366).filter(bool), min_size=1, max_size=4))
        parts.append(f"BYYEARDAY={_joined(days)}")
        by_day = True
    if draw(st.booleans()):
        # Not both in one rule: dateutil then wants both to match, where the RFC wants either.
        numbered = frequency in ("YEARLY", "MONTHLY") and draw(st.booleans())
        numbers = st.sampled_from(["1", "2", "-1", "-2"]) if numbered else st.just("")
        names = st.sampled_from(["MO", "TU", "WE", "TH", "FR", "SA", "SU"])
        weekdays = draw(st.sets(st.tuples(numbers, names), min_size=1, max_size=4))
        parts.append(f"BYDAY={_joined(number + name for number, name in weekdays)}")
        by_day = True
    if draw(st.booleans()):
        parts.append(f"BYHOUR={_joined(draw(st.sets(st.integers(0, 23), min_size=1, max_size=3)))}")
    if by_day and draw(st.booleans()):
        positions = draw(st.sets(st.sampled_from([1, 2, 3, -1, -2]), min_size=1, max_size=2))
        parts.append(f"BYSETPOS={_joined(positions)}")
    return ";".join(parts)


@given(rule=rules(), days=st.integers(0, 2500), start=st.integers(0, 800))
@settings(max_examples=120)
def test_any_window_of_a_rule_equals_dateutils(rule: str, days: int, start: int) -> None:
    begin = START + timedelta(days=start)
    parsed = parse_rrule(rule, begin)
    # dateutil searches a rule without occurrences up to the year 9999.
    assume(next(parsed.between(begin, begin + timedelta(days=4400)), None))
    first = begin + timedelta(days=days - 100)
    if "BYSETPOS" in rule:
        first = max(first, begin + FIRST_WEEK)
    last = first + timedelta(days=400)

    ours = list(parsed.between(first, last))

    assert ours == rrulestr(rule, dtstart=begin).between(first, last, inc=True)


@given(rule=rules(), count=st.integers(1, 40))
@settings(max_examples=50)
def test_count_ends_a_rule_as_dateutil_does(rule: str, count: int) -> None:
    assume("BYSETPOS" not in rule)
    assume(next(parse_rrule(rule, START).between(START, START + timedelta(days=4400)), None))
    counted = parse_rrule(f"{rule};COUNT={count}", START)
    last = START + timedelta(days=366 * 30)
    ours = list(counted.between(START - timedelta(days=10), last))
    theirs = islice(rrulestr(f"{rule};COUNT={count}", dtstart=START), count)
    assert ours == [wall for wall in theirs if wall <= last]


@given(rule=rules(), count=st.integers(1, 40), seconds=st.integers(-86_400, 200 * 86_400))
@settings(max_examples=50)
def test_a_search_from_within_a_period_finds_what_a_walk_finds(
    rule: str, count: int, seconds: int
) -> None:
    dense = f"{rule};BYHOUR=0,9,23;BYSECOND=0,31" if "BYHOUR" not in rule else rule
    parsed = parse_rrule(dense, START)
    # dateutil searches a rule without occurrences up to the year 9999.
    assume(next(parsed.between(START, START + timedelta(days=4400)), None))
    first = START + timedelta(seconds=seconds, microseconds=1)
    if "BYSETPOS" in rule:
        first = max(first, START + FIRST_WEEK)
    last = first + timedelta(days=5000)
    ours = islice(parsed.between(first, last), count)
    theirs = rrulestr(dense, dtstart=START).xafter(first, count=count, inc=True)
    assert list(ours) == list(takewhile(lambda wall: wall <= last, theirs))


@pytest.mark.parametrize(
    "rule",
    [
        f"FREQ=YEARLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;{EVERY_SECOND}",
        f"FREQ=YEARLY;BYMONTH=1;BYDAY=MO,TH;BYSETPOS=-1;{EVERY_SECOND}",
    ],
)
def test_a_dense_rule_costs_little_memory(rule: str) -> None:
    tracemalloc.start()
    found = Slots(
        Spec(RruleRecurrence(rule), ONCE_A_DAY, start_time=START.replace(tzinfo=UTC))
    ).after(datetime(2026, 1, 1, tzinfo=UTC))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert peak < 20_000_000


def test_the_last_of_many_rare_occurrences_is_not_looked_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    periods: list[int] = []
    look = Rrule.days
    monkeypatch.setattr(
        Rrule, "days", lambda self, number: periods.append(number) or look(self, number)
    )
    rare = parse_rrule("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;COUNT=10000", START)
    assert next(rare.between(START, datetime(2300, 1, 1))).year == 2024  # noqa: DTZ001 - wall
    assert len(periods) < 300 * 366


def test_a_rule_that_begins_within_a_second_begins_with_the_next() -> None:
    begin = START.replace(tzinfo=UTC, microsecond=1)

    found = Slots(Spec(RruleRecurrence("FREQ=DAILY;COUNT=2"), ONCE_A_DAY, start_time=begin))

    first = START.replace(tzinfo=UTC, second=1)
    assert [each.time for each in found.between(begin, begin + timedelta(days=9))] == [
        first,
        first + timedelta(days=1),
    ]


def test_slots_of_a_rule_follow_the_zone() -> None:
    spec = Spec(
        RruleRecurrence("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=9;BYMINUTE=0"),
        ONCE_A_DAY,
        "Europe/Berlin",
        start_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    found = Slots(spec).between(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))
    assert [each.time for each in found] == [
        datetime(2026, 2, 27, 8, tzinfo=UTC),
        datetime(2026, 3, 31, 7, tzinfo=UTC),
        datetime(2026, 4, 30, 7, tzinfo=UTC),
        datetime(2026, 5, 29, 7, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("", "not of the form"),
        ("FREQ", "not of the form"),
        ("INTERVAL=2", "FREQ is required"),
        ("FREQ=HOURLY", "FREQ 'HOURLY' is not one of"),
        ("FREQ=DAILY;FREQ=DAILY", "given twice"),
        ("FREQ=DAILY;UNTIL=20270101", "belongs into"),
        ("FREQ=DAILY;BYWEEKNO=1", "BYWEEKNO is not supported"),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL 0 is not within"),
        ("FREQ=DAILY;COUNT=0", "COUNT 0 is not within"),
        ("FREQ=DAILY;BYHOUR=24", "BYHOUR 24 is not within"),
        ("FREQ=DAILY;BYHOUR=x", "BYHOUR 'X' is not a number"),
        ("FREQ=MONTHLY;BYMONTHDAY=0", "BYMONTHDAY 0 is not within"),
        ("FREQ=WEEKLY;BYDAY=1MO", "may be numbered"),
        ("FREQ=WEEKLY;BYDAY=XX", "does not end in a weekday"),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "does not go with"),
        ("FREQ=MONTHLY;BYYEARDAY=1", "goes with FREQ=YEARLY"),
        ("FREQ=MONTHLY;BYSETPOS=1", "needs another BY part"),
        ("FREQ=DAILY;WKST=XX", "WKST 'XX'"),
    ],
)
def test_malformed_rules_are_refused_with_a_sentence(rule: str, sentence: str) -> None:
    with pytest.raises(RruleError, match=sentence):
        parse_rrule(rule, START)


def test_a_rule_that_never_matches_ends_a_search() -> None:
    rule = parse_rrule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;COUNT=3", START)
    assert list(rule.between(START, START + timedelta(days=3660))) == []
