"""JSON between clients, Python and hashes: nothing is changed on the way unsaid."""

import math
from decimal import Decimal

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.jsonvalues import (
    canonical_json,
    from_struct,
    from_value,
    to_struct,
    to_value,
)

EXACT = 2**53

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-EXACT, EXACT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_what_goes_out_comes_back_equal(value):
    sent = Value.FromString(to_value(value).SerializeToString())

    assert from_value(sent) == value
    assert canonical_json(from_value(sent)) == canonical_json(value)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_struct_is_the_object_that_a_client_of_any_language_reads(fields):
    assert json_format.MessageToDict(to_struct(fields)) == fields


def test_integral_numbers_come_in_as_integers():
    struct = json_format.ParseDict({"a": 3.0, "b": [1.5, -0.0], "c": 1e300}, Struct())

    fields = from_struct(struct)

    assert fields == {"a": 3, "b": [1.5, 0], "c": 1e300}
    assert [type(each) for each in (fields["a"], fields["b"][1], fields["c"])] == [int, int, float]


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (EXACT, EXACT),
        (EXACT + 1, "9007199254740993"),
        (-EXACT - 1, "-9007199254740993"),
        (Decimal("1.50"), "1.5"),
        (Decimal("1E+3"), "1000"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        ((1, 2), [1, 2]),
    ],
)
def test_what_a_double_cannot_hold_goes_out_as_text(value, sent):
    assert from_value(to_value(value)) == sent


def test_an_unset_value_is_null():
    assert from_value(Value()) is None


def test_what_is_no_json_is_refused_on_the_way_in():
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="NaN"):
            from_value(Value(number_value=number))


@pytest.mark.parametrize("value", [{1: "x"}, b"bytes", {"x": object()}, [{1, 2}]])
def test_what_json_cannot_say_is_refused_on_the_way_out(value):
    with pytest.raises(TypeError):
        to_value(value)
    with pytest.raises(TypeError):
        canonical_json(value)


def test_nesting_that_no_parser_accepts_is_refused_and_the_deepest_allowed_is_parsed():
    def nested(depth):
        value = 1
        for each in range(depth - 1):
            value = {"x": value} if each % 2 else [value]
        return value

    sent = to_value(nested(30)).SerializeToString()
    assert from_value(Value.FromString(sent)) == nested(30)
    with pytest.raises(ValueError, match="deeper than 30"):
        to_value(nested(31))


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        ({"b": 1, "a": {"d": None, "c": True}}, b'{"a":{"c":true,"d":null},"b":1}'),
        ({"n": 1.0}, b'{"n":1}'),
        ([0.1, -0.0, 1e300], b"[0.1,0,1e+300]"),
        (Decimal("10.00"), b'"10"'),
        (Decimal("-0.0"), b'"0"'),
        ("é\u2028", '"é\u2028"'.encode()),
        (2**70, b"1180591620717411303424"),
    ],
)
def test_equal_values_have_one_spelling(value, spelling):
    assert canonical_json(value) == spelling


@pytest.mark.parametrize("value", [math.nan, math.inf, Decimal("NaN")])
def test_a_hash_of_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="NaN"):
        canonical_json(value)
