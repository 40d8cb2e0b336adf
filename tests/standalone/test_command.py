"""What `up --set` takes and refuses."""

import pytest

from services.standalone.__main__ import further_settings
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
