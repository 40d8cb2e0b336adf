"""Reads what a server answered to a tool; what it should not have answered becomes a refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core.tools import ToolException

from cogni.graph.egress import EgressError

#: RFC 8259 section 6: whole numbers beyond it are not the same to every reader of JSON.
NUMBER_MAX = 2**53 - 1
SAID_LENGTH_MAX = 200


class Fields:
    """The fields of a JSON object from outside. Its readers raise ToolException, without quoting.

    Texts come out as every checkpoint and event can hold them.
    """

    def __init__(self, who: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise ToolException(f"{who} answered with something that is no object.")
        self._who = who
        self._content = content

    def text(self, name: str) -> str:
        """A text that must be there."""
        value = self._content.get(name)
        if not isinstance(value, str):
            raise self._unusable(name)
        return storable(value)

    def text_if_any(self, name: str) -> str:
        """A text, or "" where there is none."""
        return "" if self._content.get(name) is None else self.text(name)

    def number(self, name: str) -> int:
        """A whole number that must be there."""
        value = self._content.get(name)
        # True is an int to Python.
        if type(value) is not int or abs(value) > NUMBER_MAX:
            raise self._unusable(name)
        return value

    def is_true(self, name: str) -> bool:
        """Whether it is there and true."""
        return self._content.get(name) is True

    def inner(self, name: str) -> Fields:
        """An object that must be there."""
        if not isinstance(self._content.get(name), dict):
            raise self._unusable(name)
        return Fields(self._who, self._content[name])

    def inner_if_any(self, name: str) -> Fields | None:
        """An object, or None where there is none."""
        return None if self._content.get(name) is None else self.inner(name)

    def _unusable(self, name: str) -> ToolException:
        return ToolException(f"{self._who} answered without a usable {name!r}.")


def json_of(who: str, body: bytes) -> Any:
    """What the bytes say as JSON. Raises ToolException."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ToolException(f"{who} answered with something that is no JSON.") from None


def said(body: bytes, *names: str) -> str:
    """What a refusal says in these fields, cut off; "" for what is no refusal of an API."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    texts = (content.get(name) for name in names)
    return storable(" ".join(each for each in texts if isinstance(each, str)))[:SAID_LENGTH_MAX]


def storable(text: str) -> str:
    """The text without the lone surrogates and NULs that JSON can spell and little can store."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


@contextmanager
def after_an_act() -> Iterator[None]:
    """The request was sent: what cannot be read inside is no refusal, because it may be done.

    ToolException becomes an EgressError that says so, and no model hears that it may try again.
    """
    try:
        yield
    except ToolException as error:
        raise EgressError(f"{error} Nobody knows whether it was done.", maybe_done=True) from None
