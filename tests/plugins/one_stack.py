"""Under pytest-xdist, says what one worker takes as a whole, and what is begun first."""

from __future__ import annotations

from collections import Counter

import pytest

_STACK = "tests/e2e/"
#: What starts processes and waits for them: the longest, in this order. Begun first, they wait
#: while the other workers calculate; begun last, the machine would wait for them alone.
_FIRST = (
    _STACK,
    "tests/runner/test_process.py",
    "tests/runtime/test_process.py",
    "tests/scheduler/test_processes.py",
    "tests/standalone/test_postgres.py",
    "tests/standalone/test_stack.py",
)


def _scope(nodeid: str) -> str:
    """A module is a unit of work, and so is the folder whose modules share a stack."""
    return _STACK if nodeid.startswith(_STACK) else nodeid.split("::", 1)[0]


def _rank(scope: str) -> int:
    return _FIRST.index(scope) if scope in _FIRST else len(_FIRST)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return
    sizes = Counter(_scope(item.nodeid) for item in items)
    items.sort(key=lambda item: (_rank(_scope(item.nodeid)), -sizes[_scope(item.nodeid)]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    # The order in which the workers have collected is the one to keep.
    config.option.loadscopereorder = False

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Scheduling(config, log)
