"""Page tokens: they continue their own list and no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.paging import (
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
    decode_page_token,
    encode_page_token,
    page_limit,
)

LIST = {"rpc": "ListRuns", "tenant": "t1", "state": [1, 2]}
KEY = ["2026-01-01T00:00:00+00:00", "run-1", None, 7]


def test_a_token_continues_its_list():
    token = encode_page_token(KEY, bound_to=LIST)

    assert decode_page_token(token, bound_to=dict(reversed(LIST.items()))) == KEY
    assert decode_page_token("", bound_to=LIST) is None


@pytest.mark.parametrize("change", [{"tenant": "t2"}, {"state": [1]}, {"rpc": "ListGrants"}])
def test_a_token_of_another_list_is_refused(change):
    token = encode_page_token(KEY, bound_to={**LIST, **change})

    with pytest.raises(ServiceError) as refusal:
        decode_page_token(token, bound_to=LIST)
    assert (refusal.value.kind, refusal.value.reason) == (
        ErrorKind.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
    )


@given(st.text() | st.from_regex(r"\A[A-Za-z0-9_-]{0,80}={0,2}\Z"))
def test_whatever_else_comes_as_a_token_is_refused(text):
    if text:
        with pytest.raises(ServiceError, match="damaged"):
            decode_page_token(text, bound_to=LIST)


@given(st.data())
def test_a_token_with_any_letter_changed_is_refused(data):
    token = encode_page_token(KEY, bound_to=LIST)
    place = data.draw(st.integers(0, len(token.rstrip("=")) - 2))
    letter = data.draw(st.sampled_from("abcXYZ019-_").filter(lambda each: each != token[place]))

    with pytest.raises(ServiceError):
        decode_page_token(token[:place] + letter + token[place + 1 :], bound_to=LIST)


def test_a_page_has_a_default_and_a_greatest_size():
    assert page_limit(0) == PAGE_SIZE_DEFAULT
    assert page_limit(7) == 7
    assert page_limit(10**6) == PAGE_SIZE_MAX
