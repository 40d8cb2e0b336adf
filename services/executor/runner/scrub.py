"""Takes the values of leased credentials out of whatever a tool hands back."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from pydantic import BaseModel

from services.executor.runner.spellings import spellings

SCRUBBED = "[credential]"
#: Stands for an object that nobody can look into.
UNSEARCHABLE = "[not kept: it may hold a credential]"

#: Shorter values are no secrets; taking them out would mangle ordinary text.
_LENGTH_MIN = 6
#: Deeper values are replaced whole rather than searched.
_DEPTH_MAX = 50
#: Have no room for a secret.
_PLAIN = (bool, int, float, date, time, timedelta, Decimal, UUID, Enum)


class ToolFailedError(Exception):
    """Stands for a tool's exception whose text held a credential."""


class Scrubber:
    """Knows the secrets of one run's leases, in the spellings they are likely to appear in."""

    def __init__(self) -> None:
        self._spellings: list[str] = []
        self._in_bytes: list[bytes] = []
        self._serde = JsonPlusSerializer()

    def learn(self, secrets: Iterable[str]) -> None:
        """Take these values out from now on."""
        learnt = [each for each in secrets if len(each) >= _LENGTH_MIN]
        found = set(self._spellings).union(*map(spellings, learnt))
        # The longest first: a spelling may hold another one.
        self._spellings = sorted(found, key=len, reverse=True)
        only_in_bytes = {each.encode("utf-16-le") for each in learnt}
        only_in_bytes |= {each.encode()[::-1] for each in learnt}
        in_bytes = {each.encode() for each in found} | only_in_bytes | set(self._in_bytes)
        self._in_bytes = sorted(in_bytes, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return the text without any known secret."""
        for spelling in self._spellings:
            text = text.replace(spelling, SCRUBBED)
        return text

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return the value, of the same type, without any known secret in its texts.

        What cannot be searched becomes a text that says so.
        """
        if not self._spellings or value is None or isinstance(value, _PLAIN):
            return value
        if depth > _DEPTH_MAX:
            return SCRUBBED
        if isinstance(value, str):
            return self.text(value)
        try:
            return self._container(value, depth + 1)
        except Exception:
            # Taking somebody's type apart runs its code, which may do anything but hold up the
            # outcome: what the tool did is done.
            return UNSEARCHABLE

    def failure(self, failure: BaseException) -> BaseException:
        """Return what may be raised in place of `failure`: itself when it holds no secret."""
        if isinstance(failure, GraphBubbleUp):
            if isinstance(failure, GraphInterrupt):
                failure.args = tuple(self.value(each) for each in failure.args)
            return failure
        said = f"{failure} {failure!r}"
        if self.text(said) == said:
            return failure
        return ToolFailedError(f"{type(failure).__name__}: {self.text(str(failure))}")

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, bytes | bytearray):
            return type(value)(self._bytes(bytes(value)))
        if isinstance(value, BaseModel):
            names = [*type(value).model_fields, *(value.model_extra or {})]
            return value.model_copy(
                update={name: self.value(getattr(value, name), depth) for name in names}
            )
        if isinstance(value, Mapping):
            return {self.value(k, depth): self.value(v, depth) for k, v in value.items()}
        if isinstance(value, list | set | frozenset):
            return type(value)(self.value(each, depth) for each in value)
        if isinstance(value, deque):
            return deque((self.value(each, depth) for each in value), value.maxlen)
        if isinstance(value, tuple):
            items = [self.value(each, depth) for each in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value, depth)
        if isinstance(value, BaseException):
            return self.failure(value)
        return self._unknown(value)

    def _unknown(self, value: Any) -> Any:
        # As a checkpoint would keep it. What no checkpoint can keep, nobody can search.
        _, kept = self._serde.dumps_typed(value)
        return UNSEARCHABLE if any(each in kept for each in self._in_bytes) else value

    def _dataclass(self, value: Any, depth: int) -> Any:
        changed = {
            each.name: self.value(getattr(value, each.name), depth)
            for each in dataclasses.fields(value)
            if each.init
        }
        return dataclasses.replace(value, **changed)

    def _bytes(self, value: bytes) -> bytes:
        for spelling in self._in_bytes:
            value = value.replace(spelling, SCRUBBED.encode())
        return value
