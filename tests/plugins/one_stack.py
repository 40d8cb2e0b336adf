"""Under pytest-xdist, gives all of tests/e2e to one worker: they share one embedded stack."""

from __future__ import annotations

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        """A module is a unit of work, and so is the folder whose modules share a stack."""

        def _split_scope(self, nodeid: str) -> str:
            folder = "tests/e2e/"
            return folder if nodeid.startswith(folder) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)
