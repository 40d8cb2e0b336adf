"""What a grant demands of a tool's arguments, and whether given ones satisfy it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.runtime.jsonvalues import Json, canonical_json

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Equals:
    """The value is one of `values`."""

    values: tuple[Json, ...]

    def breach(self, value: Json) -> str | None:
        # Compared in canonical form: Python holds True to be equal to 1.
        spelt = canonical_json(value)
        if any(canonical_json(each) == spelt for each in self.values):
            return None
        return "has a value that the grant does not list"


@dataclass(frozen=True, slots=True)
class Glob:
    """The value is a text that matches as a whole; "*" is any run of characters, "?" one."""

    pattern: str

    def breach(self, value: Json) -> str | None:
        if isinstance(value, str) and _matches(self.pattern, value):
            return None
        return f"does not match {self.pattern!r}"


@dataclass(frozen=True, slots=True)
class Range:
    """The value is a number within both bounds, where given."""

    min: float | None = None
    max: float | None = None

    def breach(self, value: Json) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "is not a number"
        if (self.min is None or value >= self.min) and (self.max is None or value <= self.max):
            return None
        return "is out of the range that the grant allows"


@dataclass(frozen=True, slots=True)
class MaxLength:
    """The value is a text or a list, at most so long."""

    length: int

    def breach(self, value: Json) -> str | None:
        if isinstance(value, str | list) and len(value) <= self.length:
            return None
        return f"is not a text or list of at most {self.length}"


ArgumentRule = Equals | Glob | Range | MaxLength


@dataclass(frozen=True, slots=True)
class ArgumentConstraint:
    """What must hold for the argument at `path`, names joined by dots."""

    path: str
    required: bool = False
    rule: ArgumentRule | None = None

    def breach(self, arguments: dict[str, Json]) -> str | None:
        """Return what is wrong with the argument, without its value; None when nothing is."""
        value = _at(arguments, self.path.split("."))
        if value is _ABSENT:
            return f"the argument {self.path!r} is missing" if self.required else None
        wrong = self.rule.breach(value) if self.rule else None  # type: ignore[arg-type]
        return f"the argument {self.path!r} {wrong}" if wrong else None


def first_breach(
    constraints: Sequence[ArgumentConstraint], only_named: bool, arguments: dict[str, Json]
) -> str | None:
    """Return the first thing wrong with the arguments, None when they satisfy everything."""
    for constraint in constraints:
        breach = constraint.breach(arguments)
        if breach is not None:
            return breach
    if only_named:
        named = {constraint.path for constraint in constraints}
        for path in _unnamed(named, arguments, ""):
            return f"the argument {path!r} is not named by the grant"
    return None


def _at(arguments: object, names: list[str]) -> object:
    found = arguments
    for name in names:
        if not isinstance(found, dict) or name not in found:
            return _ABSENT
        found = found[name]
    return found


def _unnamed(named: set[str], arguments: dict[str, Json], prefix: str) -> Iterator[str]:
    for name, value in arguments.items():
        path = f"{prefix}{name}"
        if path in named:
            continue
        if isinstance(value, dict) and any(each.startswith(f"{path}.") for each in named):
            yield from _unnamed(named, value, f"{path}.")
        else:
            yield path


def _matches(pattern: str, text: str) -> bool:
    """Match segment by segment, each at its first place: never tries a combination twice."""
    first, *others = pattern.split("*")
    if not others:
        return len(first) == len(text) and _segment(first).fullmatch(text) is not None
    *middle, last = others
    if len(first) + len(last) > len(text):
        return False
    if not _segment(first).match(text) or not _segment(last).match(text, len(text) - len(last)):
        return False
    position, end = len(first), len(text) - len(last)
    for segment in middle:
        found = _segment(segment).search(text, position, end)
        if found is None:
            return False
        position = found.end()
    return True


def _segment(segment: str) -> re.Pattern[str]:
    return re.compile(
        "".join("." if char == "?" else re.escape(char) for char in segment), re.DOTALL
    )
