"""Free-form JSON goes through the contract without losing whole numbers."""

from __future__ import annotations

import math

import pytest

from cogni.client.values import from_json_message, to_struct, to_value


def test_an_object_comes_back_as_it_went() -> None:
    value = {"a": 1, "b": [1.5, None, True, "x"], "c": {"d": -3}}

    assert from_json_message(to_struct(value)) == value
    assert isinstance(from_json_message(to_struct(value))["a"], int)


def test_an_integer_beyond_a_double_travels_as_text() -> None:
    assert from_json_message(to_value({"big": 2**60})) == {"big": str(2**60)}


def test_what_is_not_json_is_refused() -> None:
    for wrong in ({"x": object()}, {"x": math.nan}, {"x": math.inf}):
        with pytest.raises(ValueError, match="not a JSON value"):
            to_struct(wrong)
