"""Which RPCs the channel may repeat by itself, and when it gives a server up."""

from __future__ import annotations

import json

import grpc
import grpc.aio
import pytest

from cogni.client import channel
from cogni.client.catalogue import CATALOGUE
from cogni.client.channel import is_retry_safe, service_config
from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import ledger_service_pb2_grpc as stubs
from tests.plugins.silent_server import silent_server


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


async def test_a_server_that_has_stopped_answering_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "KEEPALIVE_MS", 100)
    monkeypatch.setattr(channel, "KEEPALIVE_TIMEOUT_MS", 100)
    async with (
        silent_server() as address,
        grpc.aio.insecure_channel(address, options=channel.options([])) as opened,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await stubs.LedgerServiceStub(opened).GetAccount(pb.GetAccountRequest(), timeout=30)

    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
