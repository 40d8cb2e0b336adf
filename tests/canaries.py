"""Looks for secrets where none may be: every table, the broker, files, and memory of processes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import asyncpg
import redis.asyncio

_COLUMNS = """
SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns
JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'
ORDER BY 1, 2, 3
"""
_CHUNK_BYTES = 16 * 1024 * 1024
# Private memory that was written: what was only mapped from a file is in that file.
_WRITABLE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ \S+ *(.*)")


def forms(secret: str) -> list[bytes]:
    """The secret as it may have been written: itself, in hex, base64, a URL, or JSON."""
    raw = secret.encode()
    return list(
        dict.fromkeys(
            [
                raw,
                raw.hex().encode(),
                raw.hex().upper().encode(),
                *_in_base64(raw),
                quote(secret, safe="").encode(),
                "".join(f"%{byte:02x}" for byte in raw).encode(),
                json.dumps(secret)[1:-1].encode(),
                secret.encode("utf-16-le"),
                raw[::-1],
            ]
        )
    )


def _in_base64(raw: bytes) -> Iterable[bytes]:
    """What base64 makes of it wherever it begins in what was encoded, in both alphabets."""
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * before + raw).rstrip(b"=")
            # The first and last characters also depend on the neighbours.
            yield encoded[(0, 2, 3)[before] : len(encoded) - 1]


def containing(secrets: Iterable[str], blobs: Mapping[str, bytes]) -> list[str]:
    """The names of the blobs that hold a secret in any form."""
    looked_for = [form for secret in secrets for form in forms(secret)]
    return [name for name, blob in blobs.items() if any(form in blob for form in looked_for)]


async def tables(url: str) -> dict[str, bytes]:
    """Everything in every table of every schema, as the superuser sees it: a blob per column."""
    connection = await asyncpg.connect(url)
    try:
        found = {}
        for schema, table, column, kind in await connection.fetch(_COLUMNS):
            as_bytes = (
                f'"{column}"' if kind == "bytea" else f"convert_to(\"{column}\"::text, 'UTF8')"
            )
            blob = await connection.fetchval(
                f"SELECT string_agg({as_bytes}, decode('0a', 'hex')) FROM {schema}.\"{table}\""
            )
            found[f"{schema}.{table}.{column}"] = blob or b""
        return found
    finally:
        await connection.close()


async def broker(url: str) -> bytes:
    """Every key with its value."""
    async with redis.asyncio.from_url(url) as client:
        read = {
            b"string": lambda key: client.get(key),
            b"list": lambda key: client.lrange(key, 0, -1),
            b"hash": lambda key: client.hgetall(key),
            b"set": lambda key: client.smembers(key),
            b"zset": lambda key: client.zrange(key, 0, -1),
        }
        found = b""
        async for key in client.scan_iter():
            # A key that is gone by now has no type.
            kind = await client.type(key)
            if kind != b"none":
                found += key + repr(await read[kind](key)).encode()
        return found


def holding_in_memory(pid: int, secrets: Iterable[str]) -> list[str]:
    """Which of the secrets the memory of a process holds as plain bytes.

    Raises PermissionError unless the kernel lets this process look, as it lets root.
    """
    wanted = {secret: secret.encode() for secret in secrets}
    overlap = max(map(len, wanted.values()), default=1) - 1
    found: set[str] = set()
    ranges = [
        (int(match[1], 16), int(match[2], 16))
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if (match := _WRITABLE.match(line)) and not match[3].startswith("[v")
    ]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for begin, end in ranges:
            for at in range(begin, end, _CHUNK_BYTES):
                try:
                    memory.seek(max(begin, at - overlap))
                    chunk = memory.read(min(end, at + _CHUNK_BYTES) - max(begin, at - overlap))
                except OSError:
                    # Given back meanwhile, or reserved and never filled.
                    continue
                found |= {secret for secret, raw in wanted.items() if raw in chunk}
    return sorted(found)
