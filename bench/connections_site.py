"""A Connections server to measure: its database, keys, a provider, and connections by the many."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc
import grpc.aio
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from bench.embedded import database
from services.connections.keyring import KeyRing
from services.connections.secret import SECRET as KIND
from services.connections.secret import AuthKind, Secret
from services.connections.vault import Binding, seal
from services.runtime.caller import RunClaims
from services.runtime.ids import new_id
from services.runtime.tokens.signing import mint_run_token
from tests.connections.oauth_server import OAuthServer, serve

TENANT = "bench"
SECRET = "bench-secret-" + "x" * 32


class _Bearer(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._metadata = ("authorization", f"Bearer {token}")

    async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._metadata)
        return await continuation(details._replace(metadata=metadata), request)


@dataclass(frozen=True)
class Site:
    """What outlives a server process: its database, its settings, and everybody's keys."""

    database_url: str
    environment: dict[str, str]
    folder: Path
    executor_key: Ed25519PrivateKey
    ring: dict[str, bytes]


@dataclass(frozen=True)
class Running:
    """A server process, and the keys to be whoever is needed."""

    address: str
    pid: int
    site: Site

    def channel(self, token: str) -> grpc.aio.Channel:
        """A channel whose every call carries the token."""
        return grpc.aio.insecure_channel(self.address, interceptors=[_Bearer(token)])

    def user_token(self) -> str:
        """A person with every scope of Connections."""
        now = int(time.time())
        scopes = "connections:read connections:write connections:admin"
        claims = {"sub": "bench", "tenant": TENANT, "scope": scopes, "aud": "cogni"}
        return jwt.encode({**claims, "iat": now, "exp": now + 3600}, SECRET, algorithm="HS256")

    def run_token(self, *connection_ids: str) -> str:
        """One attempt of a run whose grant names these connections."""
        now = datetime.now(UTC)
        end = now + timedelta(minutes=30)
        claims = RunClaims(new_id(), 1, TENANT, new_id(), connection_ids, new_id(), end)
        return mint_run_token(self.site.executor_key, claims, now)


@contextmanager
def provider() -> Iterator[str]:
    """host:port of an OAuth server that takes 20 ms."""
    http = serve(OAuthServer(delay_seconds=0.02))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


@contextmanager
def site(provider: str) -> Iterator[Site]:
    """A migrated database with everybody's keys, and no server yet."""
    folder = Path(tempfile.mkdtemp(prefix="cogni-bench-"))
    key = Ed25519PrivateKey.generate()
    entry = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    keys = [{**entry, "kid": "executor", "alg": "EdDSA"}]
    (folder / "trusted.json").write_text(json.dumps({"keys": keys}))
    (folder / "secret").write_text(SECRET)
    with database() as url:
        environment = {
            **os.environ,
            "COGNI_AUTH_HS256_SECRET_FILE": str(folder / "secret"),
            "COGNI_TRUSTED_KEYS_FILE": str(folder / "trusted.json"),
            "COGNI_CONNECTIONS_KEYRING_FILE": str(folder / "ring.json"),
            "COGNI_CONNECTIONS_EGRESS_ALLOW": provider,
            "COGNI_CONNECTIONS_DATABASE_URL": url,
            "COGNI_CONNECTIONS_LISTEN": "127.0.0.1:0",
        }
        ring = {"k1": os.urandom(32), "k2": os.urandom(32)}
        made = Site(url, environment, folder, key, ring)
        _activate(made, "k1")
        command = [sys.executable, "-m", "services.connections", "migrate"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        yield made


@contextmanager
def server(site: Site, active_key: str) -> Iterator[Running]:
    """A server that has just started, with both keys and one of them active."""
    _activate(site, active_key)
    command = [sys.executable, "-m", "services.connections"]
    process = subprocess.Popen(command, env=site.environment, stderr=subprocess.PIPE, text=True)
    try:
        yield Running(_address(process), process.pid, site)
    finally:
        process.terminate()
        process.wait(30)


def _activate(site: Site, key: str) -> None:
    encoded = {name: base64.b64encode(each).decode() for name, each in site.ring.items()}
    (site.folder / "ring.json").write_text(json.dumps({"active": key, "keys": encoded}))


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    words = " listening on "
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            # Read on, or the server would block once the pipe is full.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return line.rpartition(words)[2].strip()
    raise RuntimeError("the server did not start:\n" + "".join(said))


_COPY = """
WITH source AS (SELECT * FROM connections.connections WHERE provider = 'api_key' LIMIT 1)
INSERT INTO connections.connections (tenant_id, connection_id, provider, auth_kind, display_name,
    labels, settings, owner, state)
SELECT $1, u, provider, auth_kind, display_name, labels, settings, owner, 'ACTIVE'
FROM source, unnest($2::uuid[]) AS u
"""


async def fill(url: str, ring: KeyRing, rows: int) -> list[str]:
    """Connections with sealed keys, made beside the server; their ids."""
    # Without triggers, or their events would be sent while leases are measured.
    connection = await asyncpg.connect(url, server_settings={"session_replication_role": "replica"})
    ids = [new_id() for _ in range(rows)]
    await connection.execute(_COPY, TENANT, ids)
    secret = Secret(AuthKind.API_KEY, {"key": "k" * 40}).to_bytes()
    records = []
    for connection_id in ids:
        binding = Binding(TENANT, connection_id, "api_key", KIND, 1)
        sealed = await seal(secret, binding, ring)
        parts = (sealed.wrapped_key, sealed.nonce, sealed.ciphertext, sealed.commitment)
        records.append((TENANT, connection_id, KIND, "api_key", 1, sealed.key_id, *parts))
    await connection.copy_records_to_table(
        "credentials",
        schema_name="connections",
        records=records,
        columns=[
            "tenant_id",
            "connection_id",
            "kind",
            "provider",
            "generation",
            "key_id",
            "wrapped_key",
            "nonce",
            "ciphertext",
            "commitment",
        ],
    )
    await connection.close()
    return ids
