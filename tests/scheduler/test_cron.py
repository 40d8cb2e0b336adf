"""Cron expressions: what parses, what is refused and with which sentence, and what days match."""

from __future__ import annotations

from datetime import date

import pytest

from services.scheduler.cron import CronError, parse_cron


def _days(expression: str, year: int, month: int) -> list[int]:
    pattern = parse_cron(expression).pattern.days
    return [
        day
        for day in range(1, 32)
        if _exists(year, month, day) and pattern.matches(date(year, month, day))
    ]


def _exists(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("0 0 L * *", [28]),
        ("0 0 LW * *", [27]),
        ("0 0 1,L * *", [1, 28]),
        ("0 0 * * FRI#2", [13]),
        ("0 0 * * 5#5", []),
        ("0 0 * * 5L", [27]),
        ("0 0 * * FRIL", [27]),
        ("0 0 * * 0", [1, 8, 15, 22]),
        ("0 0 * * 7", [1, 8, 15, 22]),
        ("0 0 13 * FRI", [6, 13, 20, 27]),
        ("0 0 */10 * FRI", []),
        ("0 0 30 2 *", []),
        ("0 0 * MAR *", []),
    ],
)
def test_days_match_as_debian_cron_reads_them(expression: str, days: list[int]) -> None:
    # February 2026 has 28 days, begins on a Sunday and ends on a Saturday.
    assert _days(expression, 2026, 2) == days


@pytest.mark.parametrize(
    ("expression", "minutes"),
    [
        ("*/20 * * * *", (0, 20, 40)),
        ("5/20 * * * *", (5, 25, 45)),
        ("10-20/5 * * * *", (10, 15, 20)),
        ("1,2,2,3-4 * * * *", (1, 2, 3, 4)),
    ],
)
def test_lists_ranges_and_steps_are_read(expression: str, minutes: tuple[int, ...]) -> None:
    assert parse_cron(expression).pattern.minutes == minutes


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("", "expected 5 fields"),
        ("* * * *", "expected 5 fields"),
        ("* * * * * *", "expected 5 fields"),
        ("60 * * * *", "minute 60 is not within 0-59"),
        ("* 24 * * *", "hour 24 is not within 0-23"),
        ("* * 0 * *", "day of month 0 is not within 1-31"),
        ("* * * 13 *", "month 13 is not within 1-12"),
        ("* * * * 8", "day of week 8 is not within 0-7"),
        ("*/0 * * * *", "step '0' is not a positive number"),
        ("9-5 * * * *", "ends before it starts"),
        ("x * * * *", "minute 'X' is not a number"),
        ("* * * FOO *", "is not a number or a name like JAN"),
        ("* * * * MON#6", "counts beyond 1-5"),
        ("1,,2 * * * *", "minute '' is not a number"),
        ("-1 * * * *", "minute '' is not a number"),
        ("* * ²  * *", "is not a number"),
        ("0 " * 300, "longer than 500"),
    ],
)
def test_malformed_expressions_are_refused_with_a_sentence(expression: str, sentence: str) -> None:
    with pytest.raises(CronError, match="(?s)" + sentence.replace("(", r"\(")):
        parse_cron(expression)
