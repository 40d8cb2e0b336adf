"""A peer that cannot be installed skips its tests on a laptop and fails them in CI."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tools.peers import PeerMissing


def _as_outcome(missing: PeerMissing) -> None:
    if os.environ.get("CI"):
        pytest.fail(str(missing))
    pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    try:
        return (yield)
    except PeerMissing as missing:
        return _as_outcome(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    try:
        return (yield)
    except PeerMissing as missing:
        return _as_outcome(missing)
