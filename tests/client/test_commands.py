"""What every command of `cogni` has in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from cogni.cli.__main__ import app

#: They print nothing but JSON.
JSON_ONLY = {"ledger receipt", "ledger price-cards get"}


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        where = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from commands(command, where)
        else:
            yield where, command


def test_every_command_prints_json_when_asked_to() -> None:
    found = dict(commands(get_command(app)))

    without = {
        name
        for name, command in found.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }

    assert len(found) > 40
    assert without == JSON_ONLY


def test_every_command_says_what_it_does() -> None:
    assert [name for name, command in commands(get_command(app)) if not command.help] == []
