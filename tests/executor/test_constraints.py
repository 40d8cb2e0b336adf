"""What a grant demands of arguments is demanded exactly, and what it does not name is denied."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.constraints import (
    ArgumentConstraint,
    Equals,
    Glob,
    MaxLength,
    Range,
    first_breach,
)
from services.executor.grants import Grant, GrantState, ToolPermission, decide_invocation
from services.executor.permissions import permissions_from_json, permissions_to_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def grant(**changes: Any) -> Grant:
    fields: dict[str, Any] = {
        "grant_id": "g",
        "tenant_id": "acme",
        "owner": "alice",
        "state": GrantState.ACTIVE,
        "display_name": "",
        "graph_ids": ("digest",),
        "tools": (ToolPermission("post"),),
        "connection_ids": ("c1",),
        "account_id": None,
        "budget": None,
        "expire_time": None,
        "labels": {},
        "create_time": NOW,
        **changes,
    }
    return Grant(**fields)


def decided(
    granted: Grant, tool: str = "post", arguments: Any = None, connection: str | None = None
) -> str | None:
    decision = decide_invocation(
        granted, tool, arguments or {}, connection_id=connection, invocations_before=1, now=NOW
    )
    assert decision.allowed == (decision.reason is None)
    return decision.reason


def test_a_tool_that_is_not_named_is_denied() -> None:
    assert decided(grant()) is None
    assert decided(grant(), tool="Post") == "TOOL_NOT_GRANTED"
    assert decided(grant(tools=())) == "TOOL_NOT_GRANTED"


def test_a_connection_that_is_not_named_is_denied() -> None:
    assert decided(grant(), connection="c1") is None
    assert decided(grant(), connection="c2") == "CONNECTION_NOT_GRANTED"


def test_an_ended_grant_denies_everything() -> None:
    assert decided(grant(state=GrantState.REVOKED)) == "GRANT_REVOKED"
    assert decided(grant(state=GrantState.EXPIRED, expire_time=NOW)) == "GRANT_EXPIRED"
    assert decided(grant(expire_time=NOW)) == "GRANT_EXPIRED"
    assert decided(grant(expire_time=NOW + timedelta(microseconds=1))) is None


def test_a_limit_on_invocations_counts_those_before() -> None:
    assert decided(grant(tools=(ToolPermission("post", max_invocations_per_run=2),))) is None
    limited = grant(tools=(ToolPermission("post", max_invocations_per_run=1),))
    assert decided(limited) == "INVOCATION_LIMIT"


@pytest.mark.parametrize(
    ("constraint", "fitting", "breaking"),
    [
        (ArgumentConstraint("a", required=True), [{"a": None}], [{}, {"b": 1}]),
        (ArgumentConstraint("a", rule=Equals((1,))), [{"a": 1}, {}], [{"a": True}, {"a": "1"}]),
        (ArgumentConstraint("a", rule=Equals((True,))), [{"a": True}], [{"a": 1}, {"a": None}]),
        (ArgumentConstraint("a", rule=Equals(("x", "y"))), [{"a": "y"}], [{"a": "z"}]),
        (ArgumentConstraint("a", rule=Equals(({"k": [1]},))), [{"a": {"k": [1]}}], [{"a": {}}]),
        (ArgumentConstraint("a.b", rule=MaxLength(2)), [{"a": {"b": "xy"}}, {"a": 1}], []),
        (ArgumentConstraint("a.b", required=True), [{"a": {"b": 0}}], [{"a": 1}, {"a": {}}]),
        (ArgumentConstraint("a", rule=MaxLength(2)), [{"a": "xy"}, {"a": [1, 2]}], [{"a": "xyz"}]),
        (ArgumentConstraint("a", rule=MaxLength(2)), [], [{"a": 1}, {"a": {"k": 1}}]),
        (ArgumentConstraint("a", rule=Range(1, 2)), [{"a": 1}, {"a": 2.0}], [{"a": 2.1}]),
        (ArgumentConstraint("a", rule=Range(0)), [{"a": 10**9}], [{"a": -1}, {"a": "1"}]),
        (ArgumentConstraint("a", rule=Range(0)), [], [{"a": True}, {"a": None}]),
        (ArgumentConstraint("a", rule=Glob("@*.example")), [{"a": "@b.example"}], [{"a": "@b"}]),
        (ArgumentConstraint("a", rule=Glob("a?c")), [{"a": "a*c"}], [{"a": "ac"}, {"a": 1}]),
    ],
)
def test_a_rule_accepts_exactly_what_it_should(
    constraint: ArgumentConstraint, fitting: list[Any], breaking: list[Any]
) -> None:
    assert [first_breach([constraint], False, each) for each in fitting] == [None] * len(fitting)
    assert all(first_breach([constraint], False, each) for each in breaking)


def test_arguments_that_nobody_named_are_refused_when_only_named_ones_are_wanted() -> None:
    named = [ArgumentConstraint("text"), ArgumentConstraint("record.langs")]

    assert first_breach(named, True, {"text": {"any": 1}, "record": {"langs": 1}}) is None
    assert first_breach(named, True, {"record": {"langs": 1, "via": 1}})
    assert first_breach(named, True, {"record": 1})
    assert first_breach(named, True, {"other": 1})
    assert first_breach(named, False, {"other": 1}) is None


def test_a_denial_does_not_repeat_the_argument() -> None:
    secret = "hunter2"

    for rule in (Equals(("x",)), Glob("x"), Range(0, 1), MaxLength(1)):
        breach = first_breach([ArgumentConstraint("a", rule=rule)], False, {"a": secret})
        assert breach is not None
        assert secret not in breach


@given(st.text("ab*?", max_size=8), st.text("abc", max_size=10))
def test_globs_match_as_those_of_the_standard_library(pattern: str, text: str) -> None:
    assert (Glob(pattern).breach(text) is None) == fnmatchcase(text, pattern)


def test_a_hostile_glob_comes_to_an_end() -> None:
    # One that tried combinations would not come back before the test's timeout.
    assert Glob("*a" * 400 + "b").breach("a" * 200_000)


def test_permissions_survive_their_storage() -> None:
    rules = (None, Equals((1, "x")), Glob("*"), Range(None, 2.5), MaxLength(3))
    constraints = tuple(ArgumentConstraint(f"a{n}", n > 1, rule) for n, rule in enumerate(rules))
    permissions = (ToolPermission("t", constraints, True, 0), ToolPermission("u"))

    stored: Any = permissions_to_json(permissions)

    assert permissions_from_json(stored) == permissions


def test_a_rule_of_a_newer_release_allows_nothing() -> None:
    stored = [
        {
            "tool": "t",
            "arguments": [{"path": "a", "required": False, "rule": {"regex": "x"}}],
            "only_named_arguments": False,
            "max_invocations_per_run": None,
        }
    ]

    with pytest.raises(ValueError, match="unknown argument rule"):
        permissions_from_json(stored)
