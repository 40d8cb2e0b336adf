"""The demo opens the one address of its own server, and none when the account is real."""

from pathlib import Path

from cogni.egress_rules import EgressRules
from services.standalone.demo.outside import bluesky


def test_the_stand_in_alone_is_allowed_and_only_where_it_listens(tmp_path: Path) -> None:
    own = bluesky({}, tmp_path, tmp_path)
    real = bluesky({"BLUESKY_HANDLE": "ann.test", "BLUESKY_APP_PASSWORD": "p"}, tmp_path, tmp_path)

    address = own.service_url.removeprefix("http://")
    assert own.settings == {
        "COGNI_CONNECTIONS_EGRESS_ALLOW": address,
        "COGNI_RUNNER_EGRESS_ALLOW": address,
    }
    assert EgressRules.parse(address).complaint_about_url(own.service_url) is None
    assert real.settings == {}
