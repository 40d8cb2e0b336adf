"""What the embedded stack's command line takes and refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.standalone.__main__ import app, further_settings
from services.standalone.errors import StandaloneError


def test_settings_of_services_and_of_the_runner_are_taken_as_they_are() -> None:
    given = ["COGNI_RUNNER_SLOTS=7", "COGNI_CONNECTIONS_EGRESS_ALLOW=127.0.0.1:80=x"]

    assert further_settings(given) == {
        "COGNI_RUNNER_SLOTS": "7",
        "COGNI_CONNECTIONS_EGRESS_ALLOW": "127.0.0.1:80=x",
    }


@pytest.mark.parametrize("pair", ["COGNI_RUNNER_SLOTS", "COGNI_LOG_LEVEL=debug", "SLOTS=7", ""])
def test_what_no_process_would_read_is_refused_with_the_names_there_are(pair: str) -> None:
    with pytest.raises(StandaloneError, match="begins with one of COGNI_RUNNER_, COGNI_LEDGER_"):
        further_settings([pair])


@pytest.mark.parametrize("command", ["token", "env"])
def test_a_scope_that_no_call_asks_for_is_refused_with_those_there_are(
    command: str, tmp_path: Path
) -> None:
    refused = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(
        app, [command, "--data-dir", str(tmp_path / "data"), "--scope", "runs:rite"]
    )

    assert refused.exit_code == 2
    assert "No call asks for runs:rite" in refused.output
    assert "runs:write" in refused.output
    assert not (tmp_path / "data").exists()
