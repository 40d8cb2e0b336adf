"""Every rule accepts what it should, refuses what it should, and names the field by its path."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.runtime.errors import ErrorKind, ServiceError, Violation
from services.runtime.jsonvalues import JSON_DEPTH_MAX
from services.runtime.validation import (
    Rule,
    RuleSet,
    amount,
    blob,
    custom,
    duration,
    each,
    enum_known,
    enum_set,
    integer,
    items,
    keys,
    mask,
    nested,
    one_of_set,
    page,
    required,
    struct,
    text,
    timestamp,
    uuid,
)
from tests.plugins.pets import FeedPetRequest

UUID = "01890a5d-ac96-774b-bcce-b302099a8057"
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
DAY = datetime(2026, 1, 1, tzinfo=UTC)


def nested_lists(levels: int) -> dict[str, object]:
    """An object that holds lists within lists, so many levels in all beside the innermost text."""
    value: object = "deep"
    for _ in range(levels - 1):
        value = [value]
    return {"a": value}


def violated(rule: Rule, **fields: object) -> dict[str, str]:
    found = RuleSet({FeedPetRequest: (rule,)}).violations(FeedPetRequest(**fields))
    return {each.field: each.description for each in found}


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        (uuid("request_id"), {}),
        (uuid("request_id"), {"request_id": UUID}),
        (text("name", max_length=3), {"name": "abc"}),
        (blob("photo", max_bytes=3), {"photo": b"abc"}),
        (integer("age", min=1, max=9), {"age": 9}),
        (integer("age", min=1, max=9), {}),
        (enum_set("species"), {"species": 1}),
        (enum_set("rival"), {}),
        (enum_known("species"), {}),
        (enum_known("friends"), {"friends": [1, 2]}),
        (each("pet_ids", uuid()), {"pet_ids": [UUID]}),
        (nested("favourite", required("name")), {}),
        (amount("price", positive=True), {"price": {"asset": "USD", "value": "0.000001"}}),
        (amount("price"), {"price": {"asset": "USD", "value": "-3"}}),
        (timestamp("birth_time", min=DAY), {"birth_time": DAY}),
        (timestamp("birth_time"), {"birth_time": FIRST + timedelta(microseconds=1)}),
        (timestamp("birth_time"), {"birth_time": LAST - timedelta(microseconds=1)}),
        (timestamp("birth_time", stored=False), {"birth_time": FIRST}),
        (timestamp("birth_time", stored=False), {"birth_time": LAST}),
        (duration("patience", min=timedelta(0)), {"patience": timedelta(seconds=1)}),
        (mask("update_mask", {"name"}), {"update_mask": {"paths": ["name"]}}),
        (struct("input", max_bytes=200), {"input": {"a": [1, {"b": None}]}}),
        (struct("input", max_bytes=999), {"input": nested_lists(JSON_DEPTH_MAX - 1)}),
        (one_of_set("food"), {"fish": ""}),
        (required("lives"), {"lives": 0}),
        (keys("labels", text(max_length=3)), {"labels": {"abc": ""}}),
    ],
)
def test_a_rule_accepts_what_it_should(rule: Rule, fields: dict[str, object]) -> None:
    assert violated(rule, **fields) == {}


@pytest.mark.parametrize(
    ("rule", "fields", "path"),
    [
        (required("name"), {}, "name"),
        (required("lives"), {}, "lives"),
        (required("toys"), {}, "toys"),
        (required("favourite"), {}, "favourite"),
        (uuid("request_id"), {"request_id": UUID.upper()}, "request_id"),
        (uuid("request_id"), {"request_id": "{" + UUID + "}"}, "request_id"),
        (text("name", max_length=3), {"name": "abcd"}, "name"),
        (text("name", max_length=3, min_length=2), {"name": "a"}, "name"),
        (text("name", max_length=9, pattern="[a-z]+"), {"name": "abc\n"}, "name"),
        (text("name", max_length=9), {"name": "a\x00b"}, "name"),
        (blob("photo", max_bytes=3), {"photo": b"abcd"}, "photo"),
        (integer("age", min=1, max=9), {"age": 10}, "age"),
        (integer("lives", min=1), {"lives": 0}, "lives"),
        (enum_set("species"), {}, "species"),
        (enum_set("species"), {"species": 77}, "species"),
        (enum_known("friends"), {"friends": [1, 77]}, "friends[1]"),
        (enum_known("friends"), {"friends": [0]}, "friends[0]"),
        (each("pet_ids", uuid()), {"pet_ids": [UUID, ""]}, "pet_ids[1]"),
        (items("pet_ids", max_items=1), {"pet_ids": ["a", "b"]}, "pet_ids"),
        (items("pet_ids", max_items=1, min_items=1), {}, "pet_ids"),
        (nested("favourite", required("name")), {"favourite": {}}, "favourite.name"),
        (each("toys", required("name")), {"toys": [{}]}, "toys[0].name"),
        (
            each("toys", amount("price", positive=True)),
            {"toys": [{}, {"price": {"asset": "USD", "value": "-1"}}]},
            "toys[1].price.value",
        ),
        (amount("price"), {"price": {"asset": "USD", "value": "1e9"}}, "price.value"),
        (amount("price"), {"price": {"asset": "USD", "value": "٣"}}, "price.value"),
        (amount("price"), {"price": {"asset": "", "value": "1"}}, "price.asset"),
        (
            amount("price", positive=True),
            {"price": {"asset": "USD", "value": "-0.0"}},
            "price.value",
        ),
        (timestamp("birth_time"), {"birth_time": Timestamp(nanos=-1)}, "birth_time"),
        (timestamp("birth_time"), {"birth_time": Timestamp(seconds=10**15)}, "birth_time"),
        (timestamp("birth_time"), {"birth_time": FIRST}, "birth_time"),
        (timestamp("birth_time"), {"birth_time": LAST}, "birth_time"),
        (
            timestamp("birth_time"),
            {"birth_time": Timestamp(seconds=253402300799, nanos=999_999_999)},
            "birth_time",
        ),
        (
            timestamp("birth_time", max=DAY),
            {"birth_time": DAY + timedelta(microseconds=1)},
            "birth_time",
        ),
        (duration("patience"), {"patience": Duration(seconds=1, nanos=-1)}, "patience"),
        (duration("patience", max=timedelta(1)), {"patience": timedelta(2)}, "patience"),
        (duration("patience", min=timedelta(1)), {"patience": timedelta(0)}, "patience"),
        (mask("update_mask", {"name"}), {"update_mask": {}}, "update_mask.paths"),
        (
            mask("update_mask", {"name"}),
            {"update_mask": {"paths": ["name", "age"]}},
            "update_mask.paths[1]",
        ),
        (struct("input", max_bytes=5), {"input": {"a": "long enough"}}, "input"),
        (struct("input", max_bytes=999), {"input": nested_lists(JSON_DEPTH_MAX)}, "input"),
        (struct("input", max_bytes=99), {"input": {"a": [float("nan")]}}, "input"),
        (struct("input", max_bytes=99), {"input": {"a": ["\x00"]}}, "input"),
        (struct("input", max_bytes=99), {"input": {"\x00": 1}}, "input"),
        (one_of_set("food"), {}, "food"),
        (page()[0], {"page_size": 1001}, "page_size"),
        (page()[0], {"page_size": -1}, "page_size"),
        (page()[1], {"page_token": "x" * 5000}, "page_token"),
        (keys("labels", text(max_length=3)), {"labels": {"abcd": ""}}, "labels['abcd']"),
        (each("labels", text(max_length=1)), {"labels": {"a": "bc"}}, "labels['a']"),
        (custom(lambda pet: [Violation("age", "is odd")]), {}, "age"),
    ],
)
def test_a_rule_refuses_what_it_should_by_the_path_of_the_field(
    rule: Rule, fields: dict[str, object], path: str
) -> None:
    assert list(violated(rule, **fields)) == [path]


def test_json_nested_too_deep_is_refused() -> None:
    value: object = 1
    for _ in range(40):
        value = [{"a": value}]
    assert "nested" in violated(struct("input", max_bytes=9999), input={"a": value})["input"]


def test_all_violations_are_reported_at_once_in_one_error() -> None:
    rules = RuleSet({FeedPetRequest: (required("name"), required("request_id"), *page())})

    with pytest.raises(ServiceError) as refused:
        rules.check(FeedPetRequest(page_size=-1))

    assert refused.value.kind is ErrorKind.INVALID_ARGUMENT
    assert refused.value.reason == "INVALID_REQUEST"
    assert [each.field for each in refused.value.violations] == ["name", "request_id", "page_size"]


@pytest.mark.parametrize(
    "rule",
    [
        required("nmae"),
        uuid("nmae"),
        uuid("pet_ids"),
        uuid(),
        nested("favourite", required("nmae")),
        nested("toys", required("name")),
        each("toys", required("nmae")),
        each("pet_ids", required("name")),
        each("name", uuid()),
        items("name", max_items=1),
        keys("toys", uuid()),
        enum_set("name"),
        amount("name"),
        mask("nmae", {"name"}),
        one_of_set("drink"),
    ],
)
def test_a_rule_for_a_field_that_cannot_have_it_fails_when_declared(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"cogni\.test\.v1"):
        RuleSet({FeedPetRequest: (rule,)})


def test_a_message_without_rules_is_always_right() -> None:
    assert RuleSet({}).violations(FeedPetRequest()) == []
