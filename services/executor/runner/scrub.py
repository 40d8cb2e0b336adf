"""Takes the values of leased credentials out of whatever a tool hands back."""

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from langchain_core.messages import BaseMessage
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from pydantic import BaseModel

SCRUBBED = "[credential]"

#: Shorter values are no secrets; taking them out would mangle ordinary text.
_LENGTH_MIN = 6
#: Deeper values are replaced whole rather than searched.
_DEPTH_MAX = 50


class ToolFailedError(Exception):
    """Stands for a tool's exception whose text held a credential."""


class Scrubber:
    """Knows the secrets of one run's leases, in the spellings they are likely to appear in."""

    def __init__(self) -> None:
        self._spellings: list[str] = []

    def learn(self, secrets: Iterable[str]) -> None:
        """Take these values out from now on."""
        found = set(self._spellings)
        for secret in secrets:
            if len(secret) >= _LENGTH_MIN:
                found |= _spellings(secret)
        # The longest first: a spelling may hold another one.
        self._spellings = sorted(found, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return the text without any known secret."""
        for spelling in self._spellings:
            text = text.replace(spelling, SCRUBBED)
        return text

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return the value, of the same type, without any known secret in its texts."""
        if not self._spellings or value is None or isinstance(value, bool | int | float):
            return value
        if depth > _DEPTH_MAX:
            return SCRUBBED
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self._bytes(value)
        return self._container(value, depth + 1)

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
        if isinstance(value, BaseMessage | BaseModel):
            return value.model_copy(
                update={
                    name: self.value(getattr(value, name), depth)
                    for name in type(value).model_fields
                }
            )
        if isinstance(value, Mapping):
            return {self.value(k, depth): self.value(v, depth) for k, v in value.items()}
        if isinstance(value, list | set | frozenset):
            return type(value)(self.value(each, depth) for each in value)
        if isinstance(value, tuple):
            items = [self.value(each, depth) for each in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value, depth)
        if isinstance(value, BaseException):
            return self.failure(value)
        return value

    def _dataclass(self, value: Any, depth: int) -> Any:
        changed = {
            each.name: self.value(getattr(value, each.name), depth)
            for each in dataclasses.fields(value)
            if each.init
        }
        return dataclasses.replace(value, **changed)

    def _bytes(self, value: bytes) -> bytes:
        for spelling in self._spellings:
            value = value.replace(spelling.encode(), SCRUBBED.encode())
        return value


def _spellings(secret: str) -> set[str]:
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, quote(secret, safe=""), encoded, secret.encode("unicode_escape").decode()}
