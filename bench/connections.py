"""Connections: warm leases beside the echo limit and the bare query, refresh storm, rotation."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
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

from bench.echo import echo_rate, echo_server
from bench.embedded import database
from bench.report import Report
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from services.connections.keyring import KeyRing
from services.connections.use_cases.key_rotation import KeyRotations
from services.runtime.caller import Caller, CallerKind, RunClaims
from services.runtime.database import Database
from services.runtime.ids import new_id
from services.runtime.tokens.signing import mint_run_token
from tests.connections.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer, serve

AREA = "connections"
CALLERS = 20
TENANT = "bench"
SECRET = "bench-secret-" + "x" * 32
START_SECONDS_MAX = 60.0
STORM_CALLERS = 80


def measure(report: Report, long: bool) -> None:
    repeats, calls = (5, 4000) if long else (3, 1500)
    with echo_server() as address:
        echo = [asyncio.run(echo_rate(address, calls, CALLERS)) for _ in range(repeats)]
        serial = [asyncio.run(echo_rate(address, 500, 1)) for _ in range(repeats)]
    report.add(AREA, f"grpc.aio echo, {CALLERS} callers (the limit)", "calls/s", echo)
    with _provider() as provider, _server(provider) as server:
        asyncio.run(_leases(report, server, repeats, calls, echo, serial))
        asyncio.run(_storm(report, server, provider))
        asyncio.run(_rotation(report, server, 100_000 if long else 10_000))


@dataclass(frozen=True)
class Running:
    """A server process with its database and the keys to be whoever is needed."""

    address: str
    database_url: str
    executor_key: Ed25519PrivateKey
    ring: dict[str, bytes]

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
        end = now + timedelta(minutes=10)
        claims = RunClaims(new_id(), 1, TENANT, new_id(), connection_ids, new_id(), end)
        return mint_run_token(self.executor_key, claims, now)


class _Bearer(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._metadata = ("authorization", f"Bearer {token}")

    async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._metadata)
        return await continuation(details._replace(metadata=metadata), request)


@contextmanager
def _provider() -> Iterator[str]:
    http = serve(OAuthServer(delay_seconds=0.02))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


@contextmanager
def _server(provider: str) -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="cogni-bench-"))
    key = Ed25519PrivateKey.generate()
    entry = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    keys = [{**entry, "kid": "executor", "alg": "EdDSA"}]
    (folder / "trusted.json").write_text(json.dumps({"keys": keys}))
    (folder / "secret").write_text(SECRET)
    ring = {"k1": os.urandom(32), "k2": os.urandom(32)}
    encoded = {"k1": base64.b64encode(ring["k1"]).decode()}
    (folder / "ring.json").write_text(json.dumps({"active": "k1", "keys": encoded}))
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
        command = [sys.executable, "-m", "services.connections"]
        subprocess.run([*command, "migrate"], env=environment, check=True, capture_output=True)
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            yield Running(_address(process), url, key, ring)
        finally:
            process.terminate()
            process.wait(30)


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


async def _leases(
    report: Report,
    server: Running,
    repeats: int,
    calls: int,
    echo: Sequence[float],
    serial: Sequence[float],
) -> None:
    async with server.channel(server.user_token()) as channel:
        request = messages.CreateConnectionRequest(request_id=new_id(), provider="api_key")
        request.secret.api_key.key = "k" * 40
        request.settings["allowed_origins"] = ["https://api.example.com"]
        stub = stubs.ConnectionsServiceStub(channel)
        connection_id = (await stub.CreateConnection(request)).connection.connection_id
    async with server.channel(server.run_token(connection_id)) as channel:
        stub = stubs.ConnectionsServiceStub(channel)
        await _lease_many(stub, connection_id, 200, CALLERS)
        rates, loaded = [], []
        for _ in range(repeats):
            begun = time.perf_counter()
            loaded.append(await _lease_many(stub, connection_id, calls, CALLERS))
            rates.append(calls / (time.perf_counter() - begun))
        alone = [await _lease_many(stub, connection_id, 300, 1) for _ in range(repeats)]
    peer = "echo"
    report.add(
        AREA, f"warm leases, {CALLERS} callers", "leases/s", rates, peer=peer, peer_values=echo
    )
    query = [await _query_ms(server.database_url) for _ in range(repeats)]
    medians = [_percentile(each, 50) for each in alone]
    report.add(
        AREA,
        "warm lease p50, one caller",
        "ms",
        medians,
        peer="echo, one caller",
        peer_values=[1000 / rate for rate in serial],
    )
    report.add(
        AREA,
        "warm lease p50, one caller",
        "ms",
        medians,
        peer="the bare commit of one row",
        peer_values=query,
    )
    for percent, samples, name in ((99, alone, "one caller"), (99, loaded, f"{CALLERS} callers")):
        values = [_percentile(each, percent) for each in samples]
        report.add(AREA, f"warm lease p{percent}, {name}", "ms", values)


async def _lease_many(
    stub: stubs.ConnectionsServiceStub, connection_id: str, calls: int, callers: int
) -> list[float]:
    """Milliseconds of each lease."""
    taken: list[float] = []

    async def call(count: int) -> None:
        for _ in range(count):
            request = messages.LeaseCredentialRequest(
                connection_id=connection_id, invocation_id=new_id(), tool="bench"
            )
            begun = time.perf_counter()
            await stub.LeaseCredential(request)
            taken.append((time.perf_counter() - begun) * 1000)

    await asyncio.gather(*(call(calls // callers) for _ in range(callers)))
    return taken


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def _query_ms(url: str) -> float:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE IF NOT EXISTS public.bare (id bigint)")
    taken = []
    for number in range(300):
        begun = time.perf_counter()
        await connection.execute("INSERT INTO public.bare VALUES ($1)", number)
        taken.append((time.perf_counter() - begun) * 1000)
    await connection.close()
    return statistics.median(taken)


async def _storm(report: Report, server: Running, provider: str) -> None:
    """Many callers meet one expired token: how long until all have the new one."""
    async with server.channel(server.user_token()) as channel:
        stub = stubs.ConnectionsServiceStub(channel)
        taken = []
        for _ in range(3):
            connection_id = await _expired(stub, provider)
            async with server.channel(server.run_token(connection_id)) as run:
                leases = stubs.ConnectionsServiceStub(run)
                begun = time.perf_counter()
                await _lease_many(leases, connection_id, STORM_CALLERS, STORM_CALLERS)
                taken.append((time.perf_counter() - begun) * 1000)
    name = f"{STORM_CALLERS} callers of one expired token, provider takes 20 ms"
    report.add(AREA, name, "ms", taken)


async def _expired(stub: stubs.ConnectionsServiceStub, provider: str) -> str:
    reader, writer = await asyncio.open_connection(*provider.split(":"))
    writer.write(b"GET /new HTTP/1.0\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="oauth2")
    request.secret.oauth_tokens.refresh_token = json.loads(answer.rpartition("\r\n\r\n")[2])
    request.secret.oauth_tokens.client_secret = CLIENT_SECRET
    request.settings["authorization_endpoint"] = f"http://{provider}/authorize"
    request.settings["token_endpoint"] = f"http://{provider}/token"
    request.settings["base_url"] = f"http://{provider}"
    request.settings["client_id"] = CLIENT_ID
    return str((await stub.CreateConnection(request)).connection.connection_id)


_COPY = """
WITH source AS (SELECT * FROM connections.connections LIMIT 1)
INSERT INTO connections.connections (tenant_id, connection_id, provider, auth_kind, display_name,
    labels, settings, owner, state)
SELECT $1, u, provider, auth_kind, display_name, labels, settings, owner, 'ACTIVE'
FROM source, unnest($2::uuid[]) AS u
"""


async def _rotation(report: Report, server: Running, rows: int) -> None:
    old = KeyRing("k1", {"k1": server.ring["k1"]})
    both = KeyRing("k2", server.ring)
    await _fill(server.database_url, old, rows)
    db = Database.open(server.database_url, "connections")
    rotations = KeyRotations(db, both)
    caller = Caller(CallerKind.USER, "bench", TENANT, frozenset({"connections:admin"}))
    await rotations.begin(caller, new_id(), "")
    begun = time.perf_counter()
    more = True
    while more:
        more = await rotations.step()
    rate = rows / (time.perf_counter() - begun)
    done = await rotations.get(caller, "")
    await db.close()
    if done.failed_rows or done.rotated_rows < rows:
        raise RuntimeError(f"the rotation left rows behind: {done}")
    report.add(AREA, f"key rotation of {rows:,} rows", "rows/s", [rate])


async def _fill(url: str, ring: KeyRing, rows: int) -> None:
    from services.connections.secret import SECRET as KIND
    from services.connections.vault import Binding, seal

    connection = await asyncpg.connect(url)
    ids = [new_id() for _ in range(rows)]
    await connection.execute(_COPY, TENANT, ids)
    records = []
    for connection_id in ids:
        binding = Binding(TENANT, connection_id, "api_key", KIND, 1)
        sealed = await seal(b"x" * 200, binding, ring)
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
