"""TLS and mTLS for gRPC, from the files the settings name."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from services.runtime.settings import SettingsError, TlsSettings

_log = logging.getLogger(__name__)


def server_credentials(settings: TlsSettings) -> grpc.ServerCredentials | None:
    """None without a certificate: the server then speaks plain text.

    With a client CA every client must show a certificate that it signed. Files that change are
    read again for the next connection, so certificates rotate without a restart; files that
    cannot be used then leave those before in force. Raises SettingsError.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    certificates = _Certificates(
        settings.tls_key_file, settings.tls_cert_file, settings.tls_client_ca_file
    )
    return grpc.dynamic_ssl_server_credentials(
        certificates.configuration(),
        # None, for "as before", is gRPC's documented answer; the stubs do not know it.
        certificates.changed,  # type: ignore[arg-type]
        require_client_authentication=settings.tls_client_ca_file is not None,
    )


class _Certificates:
    """The server's certificate files. Asked by gRPC's own threads, at each new connection."""

    def __init__(self, key: Path, certificate: Path, client_ca: Path | None) -> None:
        self._files = (key, certificate, *([client_ca] if client_ca is not None else []))
        self._read = self._contents()
        _check_pair(self._read[0], self._read[1])

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What the files said when they were read last."""
        key, certificate, *client_ca = self._read
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=client_ca[0] if client_ca else None
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration, or None while the files are as before or cannot be used."""
        try:
            contents = self._contents()
            if contents == self._read:
                return None
            # A key and a certificate are replaced one after the other: not until they match.
            _check_pair(contents[0], contents[1])
        except SettingsError as error:
            _log.error("the certificate read before stays in force: %s", error)
            return None
        self._read = contents
        return self.configuration()

    def _contents(self) -> tuple[bytes, ...]:
        return tuple(_read(path) for path in self._files)


def _check_pair(key: bytes, certificate: bytes) -> None:
    """Raises SettingsError unless the private key is the certificate's."""
    try:
        public = load_pem_private_key(key, password=None).public_key()
        fitting = load_pem_x509_certificate(certificate).public_key() == public
    except (ValueError, TypeError):
        raise SettingsError(
            ["COGNI_TLS_CERT_FILE or COGNI_TLS_KEY_FILE holds no usable PEM (keys unencrypted)."]
        ) from None
    if not fitting:
        raise SettingsError(["COGNI_TLS_KEY_FILE is not the key of COGNI_TLS_CERT_FILE."])


def channel_credentials(settings: TlsSettings) -> grpc.ChannelCredentials | None:
    """None without a CA: calls to other services then go in plain text.

    Shows this process's own certificate when it has one. Raises SettingsError.
    """
    if settings.tls_ca_file is None:
        return None
    own = settings.tls_cert_file is not None and settings.tls_key_file is not None
    return grpc.ssl_channel_credentials(
        root_certificates=_read(settings.tls_ca_file),
        private_key=_read(settings.tls_key_file) if own and settings.tls_key_file else None,
        certificate_chain=_read(settings.tls_cert_file) if own and settings.tls_cert_file else None,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError([f"{path} cannot be read: {error.strerror}."]) from None
