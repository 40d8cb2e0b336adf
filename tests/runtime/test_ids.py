"""Identifiers: ordered when new, repeatable when derived."""

import uuid
from datetime import UTC, datetime, timedelta

from services.runtime.ids import derive_id, new_id, new_uuid


def test_a_new_id_is_a_uuid_of_version_seven_that_tells_its_time():
    before = datetime.now(UTC)
    made = new_uuid()
    after = datetime.now(UTC)

    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    told = datetime.fromtimestamp((made.int >> 80) / 1000, UTC)
    assert before - timedelta(milliseconds=1) <= told <= after


def test_new_ids_are_distinct_and_sort_by_creation():
    ids = [new_id() for _ in range(2000)]

    assert len(set(ids)) == len(ids)
    # Equal up to the clock's resolution: the first 60 bits are the time.
    times = [uuid.UUID(each).int >> 64 for each in ids]
    assert times == sorted(times)


def test_a_derived_id_depends_on_every_part_and_where_it_ends():
    same = derive_id("slot", "schedule-1", 1700000000)

    assert derive_id("slot", "schedule-1", 1700000000) == same
    assert uuid.UUID(same).version == 5
    others = {
        derive_id("slot", "schedule-1", 1700000001),
        derive_id("slot", "schedule-1", "1700000000"),
        derive_id("slots", "chedule-1", 1700000000),
        derive_id("slot", "schedule-", "11700000000"),
        derive_id("slot"),
    }
    assert len(others) == 5
    assert same not in others
