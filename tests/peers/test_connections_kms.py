"""The vault under a key of AWS KMS, against moto's server."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from services.connections.adapters.aws_kms import AwsKms
from services.connections.key_chain import KeyChain
from services.connections.keyring import KeyRing, UnwrappableError
from services.connections.vault import Binding, UnreadableError, rewrap, seal, unseal
from services.runtime.errors import ServiceError
from tests.peers.node_servers import free_port
from tools.peers import python_environment

BINDING = Binding("t1", "c1", "bluesky", "secret", 1)
ELSEWHERE = Binding("t2", "c1", "bluesky", "secret", 1)
START_SECONDS_MAX = 120.0


@pytest.fixture(scope="module")
def kms_address() -> Iterator[str]:
    python = python_environment("moto", "moto[server]==5.2.5")
    address = f"http://127.0.0.1:{free_port()}"
    command = [python.parent / "moto_server", "-p", address.rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not answers(address):
            assert process.poll() is None, "moto ended at once"
            assert time.monotonic() < deadline, "moto did not start"
        yield address
    finally:
        process.kill()
        process.wait()


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


@pytest.fixture
def client(kms_address: str) -> Any:
    boto3 = pytest.importorskip("boto3")
    return boto3.client(
        "kms",
        endpoint_url=kms_address,
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@pytest.fixture
def kms(client: Any) -> AwsKms:
    return AwsKms(client, client.create_key()["KeyMetadata"]["Arn"])


async def test_what_was_sealed_opens_again_and_for_its_row_only(kms: AwsKms) -> None:
    envelope = await seal(b"hunter2", BINDING, kms)
    assert envelope.key_id == kms.active_key_id
    assert await unseal(envelope, BINDING, kms) == b"hunter2"
    with pytest.raises(UnreadableError):
        await unseal(envelope, ELSEWHERE, kms)


async def test_kms_itself_refuses_a_data_key_for_another_row(kms: AwsKms) -> None:
    key_id, wrapped = await kms.wrap(bytes(32), BINDING.associated_data())
    with pytest.raises(UnwrappableError):
        await kms.unwrap(key_id, wrapped, ELSEWHERE.associated_data())


async def test_another_key_unwraps_nothing(kms: AwsKms, client: Any) -> None:
    other = client.create_key()["KeyMetadata"]["Arn"]
    _, wrapped = await kms.wrap(bytes(32), BINDING.associated_data())
    # Access to a key may come back, so this refusal is no verdict about the row.
    with pytest.raises((UnwrappableError, ServiceError)):
        await kms.unwrap(other, wrapped, BINDING.associated_data())


async def test_rows_move_from_the_files_ring_into_kms(kms: AwsKms) -> None:
    ring = KeyRing("k1", {"k1": bytes(32)})
    before = await seal(b"hunter2", BINDING, ring)
    after = await rewrap(before, BINDING, KeyChain(kms, ring))
    assert after.key_id == kms.active_key_id
    assert await unseal(after, BINDING, kms) == b"hunter2"


async def test_a_service_that_is_away_is_unavailable_and_no_verdict() -> None:
    boto3 = pytest.importorskip("boto3")
    config = pytest.importorskip("botocore.config").Config(
        connect_timeout=1, retries={"max_attempts": 0}
    )
    client = boto3.client(
        "kms",
        endpoint_url=f"http://127.0.0.1:{free_port()}",
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=config,
    )
    with pytest.raises(ServiceError) as caught:
        await AwsKms(client, "k").unwrap("k", b"x", b"y")
    assert caught.value.reason == "UNAVAILABLE"
