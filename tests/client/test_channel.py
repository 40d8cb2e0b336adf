"""Which RPCs the channel may repeat by itself."""

from __future__ import annotations

import json

from cogni.client.catalogue import CATALOGUE
from cogni.client.channel import is_retry_safe, service_config


def retried() -> set[str]:
    config = json.loads(service_config(service.descriptor for service in CATALOGUE))
    return {name["method"] for name in config["methodConfig"][0]["name"]}


def test_starting_a_run_is_retried_because_its_request_id_makes_it_safe() -> None:
    assert "StartRun" in retried()


def test_reading_is_retried() -> None:
    assert {"GetRun", "ListSchedules", "GetRunStatement", "PreviewSchedule"} <= retried()


def test_a_change_without_request_id_is_never_retried() -> None:
    assert not {"LeaseCredential", "DeleteRun", "RevokeGrant", "UpdateSchedule"} & retried()


def test_no_stream_is_retried_by_the_channel() -> None:
    streams = {
        method.full_name
        for service in CATALOGUE
        for method in service.descriptor.methods
        if method.server_streaming and is_retry_safe(method)
    }
    assert streams == set()
