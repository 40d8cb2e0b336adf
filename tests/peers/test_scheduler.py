"""The slot engine beside croniter and APScheduler, which know nothing of each other or of us."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from services.scheduler.slots import Slots
from services.scheduler.specs import CronRecurrence, Spec, default_dst_policy
from tools.peers import python_environment, run

SEED = 20261122
EXPRESSIONS_PER_ZONE = 40
SLOTS_COMPARED = 60
YEARS = timedelta(days=3 * 366)
START = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe")
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
PEERS = ("croniter>=6,<7", "apscheduler>=3.11,<4", "tzdata")
# Reads one question a line, prints both answers to it as UTC seconds.
ASK = """
import json, sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo
from apscheduler.triggers.cron import CronTrigger
from croniter import croniter

def by_croniter(expression, zone, start, count):
    times = croniter(expression, start.astimezone(zone) - timedelta(seconds=1))
    return [int(times.get_next(datetime).timestamp()) for _ in range(count)]

def by_apscheduler(expression, zone, start, count):
    trigger, found, now = CronTrigger.from_crontab(expression, zone), [], start
    while len(found) < count:
        now = trigger.get_next_fire_time(None, now)
        if now is None:
            break
        found.append(int(now.timestamp()))
        now += timedelta(seconds=1)
    return found

for line in sys.stdin:
    ask = json.loads(line)
    about = (ask["expression"], ZoneInfo(ask["zone"]),
             datetime.fromtimestamp(ask["start"], timezone.utc), ask["count"])
    print(json.dumps({"croniter": by_croniter(*about), "apscheduler": by_apscheduler(*about)}))
"""


def _expressions(zone: str) -> list[str]:
    """Random expressions whose meaning nobody disputes: days of month or of week, never both."""
    dice = random.Random(f"{SEED} {zone}")
    return [_expression(dice) for _ in range(EXPRESSIONS_PER_ZONE)]


def _expression(dice: random.Random) -> str:
    minute = dice.choice(
        ("0", "*/15", "7-50/13", ",".join(map(str, sorted(dice.sample(range(60), 3)))))
    )
    hour = dice.choice(("*", "*/5", "9-17", str(dice.randrange(24))))
    month = dice.choice(("*", "*", "2", "1-11/2", "3,10"))
    day, weekday = "*", "*"
    if dice.random() < 0.4:
        # No peer finds a day that never comes.
        late = () if month == "2" else ("29", "31")
        day = dice.choice(("1", "10-20/3", "1,15", *late))
    elif dice.random() < 0.6:
        weekday = dice.choice((*WEEKDAYS, "MON-FRI", "SAT,SUN"))
    return f"{minute} {hour} {day} {month} {weekday}"


def _ours(expression: str, zone: str) -> list[datetime]:
    recurrence = CronRecurrence((expression,))
    spec = Spec(recurrence, default_dst_policy(recurrence), zone)
    found = []
    for slot in Slots(spec).between(START, START + YEARS):
        found.append(slot.time)
        if len(found) == SLOTS_COMPARED:
            break
    return found


def _undisputed(times: list[datetime], zone: ZoneInfo, end: datetime) -> list[datetime]:
    """Without the days on which the zone changes its clock: there each follows a policy."""
    return [time for time in times if time <= end and not _clock_changes(time, zone)]


def _clock_changes(time: datetime, zone: ZoneInfo) -> bool:
    day = timedelta(days=1)
    return (time - day).astimezone(zone).utcoffset() != (time + day).astimezone(zone).utcoffset()


@pytest.mark.parametrize("zone", ZONES)
def test_slots_are_those_of_croniter_and_apscheduler(zone: str) -> None:
    python = python_environment("cron", *PEERS)
    expressions = _expressions(zone)
    asked = "".join(
        json.dumps(
            {
                "expression": expression,
                "zone": zone,
                "start": int(START.timestamp()),
                "count": SLOTS_COMPARED,
            }
        )
        + "\n"
        for expression in expressions
    )

    answers = [json.loads(line) for line in run([python, "-c", ASK], stdin=asked).splitlines()]

    assert len(answers) == len(expressions)
    for expression, answer in zip(expressions, answers, strict=True):
        ours = _ours(expression, zone)
        for peer, seconds in answer.items():
            theirs = [datetime.fromtimestamp(each, UTC) for each in seconds]
            # Each list is cut at the same count; days left out may make one reach further.
            end = min(ours[-1], theirs[-1])
            assert _undisputed(ours, ZoneInfo(zone), end) == _undisputed(
                theirs, ZoneInfo(zone), end
            ), f"{expression} in {zone} by {peer}"
