"""TLS and mTLS for gRPC, from the files the settings name."""

from __future__ import annotations

from pathlib import Path

import grpc

from services.runtime.settings import SettingsError, TlsSettings


def server_credentials(settings: TlsSettings) -> grpc.ServerCredentials | None:
    """None without a certificate: the server then speaks plain text.

    With a client CA every client must show a certificate that it signed. Raises SettingsError.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    pair = (_read(settings.tls_key_file), _read(settings.tls_cert_file))
    client_ca = settings.tls_client_ca_file
    return grpc.ssl_server_credentials(
        [pair],
        root_certificates=_read(client_ca) if client_ca is not None else None,
        require_client_auth=client_ca is not None,
    )


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
