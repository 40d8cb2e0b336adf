"""TLS: who is let in, and how a certificate is exchanged while the server runs."""

from __future__ import annotations

import datetime
import ipaddress
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

from services.runtime.settings import SettingsError, TlsSettings
from services.runtime.tls import channel_credentials, server_credentials
from tests.plugins.pets import UnbuiltPets, pet_application
from tests.plugins.serving import ServeService

WAIT_SECONDS = 30
SERVING = health_pb2.HealthCheckResponse.SERVING


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
