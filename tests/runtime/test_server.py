"""A server says when it serves, ends its streams before it stops, and keeps its loops running."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import itertools
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime.drain import Drain, stream_drained
from services.runtime.health import Health
from services.runtime.loops import Loops
from services.runtime.port import ListenError, reserve
from services.runtime.settings import SettingsError, TelemetrySettings, TlsSettings
from services.runtime.telemetry import start_telemetry
from services.runtime.tls import channel_credentials, server_credentials
from tests.plugins.calls import feed, refusal_of, refused, watch
from tests.plugins.identities import Identities
from tests.plugins.pets import (
    SERVICE,
    FeedPetRequest,
    FeedPetResponse,
    UnbuiltPets,
    pet_application,
)
from tests.plugins.serving import Served, ServeService

WAIT_SECONDS = 30
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Pets(UnbuiltPets):
    """Feeds until it is let go, and watches until the server drains."""

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.feeding = asyncio.Event()
        self.let_go = asyncio.Event()
        self.watching = asyncio.Event()

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.feeding.set()
        await self.let_go.wait()
        return FeedPetResponse(name=request.name)

    async def WatchPet(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield FeedPetResponse(name="first")
        self.watching.set()
        await self.drain.draining.wait()
        yield FeedPetResponse(name="resume here")
        raise stream_drained()


@pytest.fixture
def user(identities: Identities) -> str:
    return identities.user_token(scopes={"pets:read", "pets:write"})


async def check(served: Served, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(served.channel())
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


async def test_health_needs_no_token_and_knows_each_service_by_name(
    serve_service: ServeService,
) -> None:
    served = await serve_service("ledger", pet_application(UnbuiltPets()))

    assert await check(served, "") == SERVING
    assert await check(served, SERVICE) == SERVING
    stub = health_pb2_grpc.HealthStub(served.channel())
    unknown = await refused(stub.Check(health_pb2.HealthCheckRequest(service="other")))
    assert unknown.code is grpc.StatusCode.NOT_FOUND


async def test_a_drain_says_not_serving_ends_streams_with_a_resume_point_and_waits_for_calls(
    serve_service: ServeService, user: str
) -> None:
    drain = Drain()
    pets = Pets(drain)
    served = await serve_service("ledger", pet_application(pets), drain=drain)
    health = health_pb2_grpc.HealthStub(served.channel()).Watch(health_pb2.HealthCheckRequest())
    assert (await health.read()).status == SERVING
    call = feed(served.channel(user))(FeedPetRequest(name="rex"))
    stream = watch(served.channel(user))(FeedPetRequest())
    await asyncio.wait_for(pets.feeding.wait(), WAIT_SECONDS)
    await asyncio.wait_for(pets.watching.wait(), WAIT_SECONDS)

    stopping = asyncio.create_task(served.server.stop(WAIT_SECONDS))

    assert (await health.read()).status == NOT_SERVING
    assert await health.read() == grpc.aio.EOF
    assert [(await stream.read()).name for _ in range(2)] == ["first", "resume here"]
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    refusal = refusal_of(ended.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert not stopping.done()
    pets.let_go.set()
    assert (await call).name == "rex"
    await asyncio.wait_for(stopping, WAIT_SECONDS)


class Busy(UnbuiltPets):
    """Feeds quickly, many at once."""

    def __init__(self) -> None:
        self.fed = 0
        self.busy = asyncio.Event()

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        await asyncio.sleep(0)
        self.fed += 1
        if self.fed == 300:
            self.busy.set()
        return FeedPetResponse()


async def test_busy_clients_that_back_off_see_nothing_but_unavailable_in_a_drain(
    serve_service: ServeService, user: str
) -> None:
    pets, drain = Busy(), Drain()
    served = await serve_service("ledger", pet_application(pets), drain=drain)
    call = feed(served.channel(user))

    async def client() -> tuple[int, grpc.StatusCode]:
        for answered in itertools.count():
            try:
                await call(FeedPetRequest(), timeout=WAIT_SECONDS)
            except grpc.aio.AioRpcError as error:
                return answered, error.code()
        raise AssertionError

    clients = [asyncio.create_task(client()) for _ in range(30)]
    await asyncio.wait_for(pets.busy.wait(), WAIT_SECONDS)

    await served.server.stop(WAIT_SECONDS)

    answers = await asyncio.gather(*clients)
    assert {code for _, code in answers} == {grpc.StatusCode.UNAVAILABLE}
    # Every call that was begun was answered.
    assert sum(answered for answered, _ in answers) == pets.fed


async def test_leases_are_handed_back_after_streams_were_told_and_before_the_stop(
    serve_service: ServeService, user: str
) -> None:
    drain = Drain()
    seen: list[tuple[bool, int]] = []

    async def hand_back() -> None:
        # The server still answers here: handing back may itself be a call.
        seen.append((drain.draining.is_set(), await check(served, "")))

    served = await serve_service(
        "ledger", pet_application(UnbuiltPets(), hand_back=hand_back), drain=drain
    )

    await served.server.stop(WAIT_SECONDS)

    assert seen == [(True, NOT_SERVING)]


@pytest.mark.parametrize("hurry", [True, False])
async def test_a_drain_ends_at_its_grace_and_a_second_signal_ends_it_at_once(
    serve_service: ServeService, user: str, hurry: bool
) -> None:
    drain = Drain()
    pets = Pets(drain)
    served = await serve_service("ledger", pet_application(pets), drain=drain)
    call = feed(served.channel(user))(FeedPetRequest())
    await asyncio.wait_for(pets.feeding.wait(), WAIT_SECONDS)

    drain.begin()
    stopping = asyncio.create_task(served.server.stop(1000 if hurry else 0.1))
    if hurry:
        await asyncio.wait({stopping}, timeout=0.05)
        drain.begin()

    await asyncio.wait_for(stopping, WAIT_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as cut:
        await asyncio.wait_for(call, WAIT_SECONDS)
    assert cut.value.code() is grpc.StatusCode.UNAVAILABLE


def names_listed(answer: Any) -> list[str]:
    return [each.name for each in answer.list_services_response.service]


@pytest.mark.parametrize("mode", ["open", "authenticated", "off"])
async def test_reflection_is_for_whom_the_setting_says(
    serve_service: ServeService, user: str, mode: str
) -> None:
    served = await serve_service("ledger", pet_application(UnbuiltPets()), reflection=mode)
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel())
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    bearer = (("authorization", f"Bearer {user}"),)

    if mode == "open":
        answers = [each async for each in stub.ServerReflectionInfo(iter([request]))]
        assert SERVICE in names_listed(answers[0])
    elif mode == "authenticated":
        answers = [
            each async for each in stub.ServerReflectionInfo(iter([request]), metadata=bearer)
        ]
        assert SERVICE in names_listed(answers[0])
        refusal = await refused(stub.ServerReflectionInfo(iter([request])))
        assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    else:
        refusal = await refused(stub.ServerReflectionInfo(iter([request]), metadata=bearer))
        assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused(serve_service: ServeService, user: str) -> None:
    served = await serve_service(
        "ledger", pet_application(UnbuiltPets()), max_message_bytes=64 * 1024
    )

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await feed(served.channel(user))(FeedPetRequest(photo=b"x" * 65 * 1024))

    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_loop_that_fails_is_logged_seen_in_health_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health, starts, again = Health(Drain()), 0, asyncio.Event()
    seen: list[int] = []

    async def flaky() -> None:
        nonlocal starts
        starts += 1
        seen.append(health.state("loop.flaky"))
        if starts == 1:
            raise RuntimeError("first time")
        again.set()
        await asyncio.Event().wait()

    telemetry = start_telemetry(TelemetrySettings(), "test")
    loops = Loops({"flaky": flaky}, health, telemetry, backoff_seconds_min=0.01)

    loops.start()
    await asyncio.wait_for(again.wait(), WAIT_SECONDS)

    assert starts == 2
    assert seen == [SERVING, SERVING]
    assert loops.states["flaky"].failures == 1
    assert "loop flaky failed" in caplog.text
    await loops.stop()


async def test_a_loop_waiting_to_start_again_is_not_serving() -> None:
    health, failed = Health(Drain()), asyncio.Event()

    async def broken() -> None:
        failed.set()
        raise RuntimeError("always")

    telemetry = start_telemetry(TelemetrySettings(), "test")
    loops = Loops({"broken": broken}, health, telemetry, backoff_seconds_min=1000)

    loops.start()
    await asyncio.wait_for(failed.wait(), WAIT_SECONDS)

    assert health.state("loop.broken") == NOT_SERVING
    await loops.stop()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_used_port_is_reported_even_when_its_owner_shares_it(shared: bool, reuse: bool) -> None:
    with socket.socket() as owner:
        if reuse:
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen(1)
        address = f"127.0.0.1:{owner.getsockname()[1]}"

        with (
            pytest.raises(ListenError, match=f"Cannot listen on {address}: address already in use"),
            reserve(address, shared=shared),
        ):
            pass


def test_a_reserved_port_can_be_shared_by_children_and_nobody_else() -> None:
    with reserve("127.0.0.1:0", shared=True) as place, socket.socket() as child:
        assert place.port > 0
        child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        child.bind((place.host, place.port))
        child.listen(1)
        with pytest.raises(ListenError), reserve(str(place), shared=False):
            pass


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:99999", ":50051", "nowhere.invalid:1"])
def test_a_malformed_address_is_told_in_a_sentence(address: str) -> None:
    with pytest.raises(ListenError, match=r"\.$"), reserve(address, shared=False):
        pass


class Authority:
    """A certificate authority of one test."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        certificate = self._certificate(self._name, self._key, is_authority=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Files of a certificate for 127.0.0.1 and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._certificate(subject, key, is_authority=False)
        certificate_file = self._folder / f"{name}.pem"
        key_file = self._folder / f"{name}.key"
        certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate_file, key_file

    def _certificate(self, subject: x509.Name, key: Any, *, is_authority: bool) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


async def health_over(address: str, credentials: grpc.ChannelCredentials) -> int:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_SECONDS)
        return int(answer.status)


async def test_mutual_tls_admits_only_clients_with_a_certificate(
    serve_service: ServeService, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    own_certificate, own_key = authority.issue("client")
    served = await serve_service(
        "ledger",
        pet_application(UnbuiltPets()),
        tls_cert_file=certificate,
        tls_key_file=key,
        tls_client_ca_file=authority.file,
    )
    known = channel_credentials(
        TlsSettings(tls_ca_file=authority.file, tls_cert_file=own_certificate, tls_key_file=own_key)
    )
    nameless = channel_credentials(TlsSettings(tls_ca_file=authority.file))
    assert known is not None
    assert nameless is not None

    assert await health_over(served.address, known) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await health_over(served.address, nameless)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_new_certificate_is_used_for_new_connections_without_a_restart(
    serve_service: ServeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = (Authority(tmp_path / name) for name in ("before", "after"))
    certificate, key = before.issue("server")
    new_certificate, new_key = after.issue("server")
    served = await serve_service(
        "ledger",
        pet_application(UnbuiltPets()),
        tls_cert_file=certificate,
        tls_key_file=key,
    )
    old_trust = channel_credentials(TlsSettings(tls_ca_file=before.file))
    new_trust = channel_credentials(TlsSettings(tls_ca_file=after.file))
    assert old_trust is not None
    assert new_trust is not None
    assert await health_over(served.address, old_trust) == SERVING

    certificate.write_bytes(new_certificate.read_bytes())
    assert await health_over(served.address, old_trust) == SERVING
    assert "stays in force" in caplog.text
    key.write_bytes(new_key.read_bytes())

    assert await health_over(served.address, new_trust) == SERVING


@pytest.mark.parametrize("wrong", ["another's key", "no key"])
def test_a_certificate_without_its_key_is_told_in_a_sentence(tmp_path: Path, wrong: str) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.issue("server")
    _, key = authority.issue("other")
    if wrong == "no key":
        key.write_text("nothing")

    with pytest.raises(SettingsError, match="COGNI_TLS_KEY_FILE"):
        server_credentials(TlsSettings(tls_cert_file=certificate, tls_key_file=key))
