"""IANA time zones, always from the installed tzdata release and never from the machine."""

from __future__ import annotations

import importlib
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

UTC_NAME = "UTC"


class UnknownZoneError(ValueError):
    """Raised when a name is not one of the installed release's zones."""


@cache
def tzdata_version() -> str:
    """The IANA release of the zones, for example "2026a"."""
    return str(importlib.import_module("tzdata").IANA_VERSION)


@cache
def zone_names() -> frozenset[str]:
    """Every zone name of the installed release, links included."""
    text = resources.files("tzdata").joinpath("zones").read_text(encoding="utf-8")
    return frozenset(text.split())


@lru_cache(maxsize=1024)
def load_zone(name: str) -> ZoneInfo:
    """The zone of that name; raises UnknownZoneError.

    The machine's own zone files are left alone: two processes on differently patched machines
    would otherwise compute different slots for the same schedule.
    """
    if name not in zone_names():
        raise UnknownZoneError(f"{name!r} is not an IANA time zone")
    path = resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    with path.open("rb") as file:
        return ZoneInfo.from_file(file, key=name)
