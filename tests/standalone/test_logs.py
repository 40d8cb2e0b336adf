"""Logs of the stack's processes: what a person is told of a process that ended."""

from __future__ import annotations

from pathlib import Path

from services.standalone.logs import BoundedLog

CHATTER = "[2026-11-26 04:42:26,996] [PID 7] [MainThread] [{}] [INFO] setup plugin"


def test_the_last_words_are_the_programs_and_not_its_libraries(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "runner.log")
    before = [CHATTER.format("alembic.runtime.plugins")] * 3
    after = [CHATTER.format("dramatiq.MainProcess")] * 3
    log.path.write_text("\n".join([*before, "COGNI_RUNNER_SLOTS: give a number.", *after]))

    assert log.last_words() == "Its last words: COGNI_RUNNER_SLOTS: give a number."


def test_the_last_words_are_its_libraries_where_it_said_nothing_itself(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "runner.log")
    log.path.write_text(CHATTER.format("dramatiq.MainProcess"))

    assert "setup plugin" in log.last_words()
