"""A small AT Protocol server for demonstrations: sessions and records of one account.

Real XRPC over HTTP (https://atproto.com/specs/xrpc): JWT sessions, records with content ids,
and the errors a real server answers. It federates with nobody. Run as a process:

    python -m services.standalone.pds PORT STATE_FILE

with PDS_HANDLE and PDS_PASSWORD in the environment; records survive restarts in STATE_FILE.
"""

import base64
import hashlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import jwt
import libipld

from services.standalone.ports import LOOPBACK
from services.standalone.private import write_private

BODY_BYTES_MAX: Final = 1024 * 1024
LIST_MAX: Final = 100
ACCESS_SECONDS: Final = 2 * 3600
REFRESH_SECONDS: Final = 60 * 24 * 3600
READY: Final = "serving AT Protocol"
ACCESS_SCOPE: Final = "com.atproto.appPass"
REFRESH_SCOPE: Final = "com.atproto.refresh"
_TID_ALPHABET: Final = "234567abcdefghijklmnopqrstuvwxyz"


class XrpcError(Exception):
    """An answer other than 200: a name from the lexicon and a text for people."""

    def __init__(self, status: HTTPStatus, name: str, message: str) -> None:
        """Keeps what to answer."""
        super().__init__(message)
        self.status = status
        self.name = name


@dataclass
class Account:
    """The one account: who it is, and how it proves it."""

    handle: str
    password: str
    did: str
    secret: str


@dataclass
class Repository:
    """The account's records by collection and key, kept in a file."""

    path: Path
    secret: str
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Repository":
        """Reads the file, or begins with nothing."""
        if not path.exists():
            return cls(path, secrets.token_urlsafe(48))
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, kept["secret"], kept["records"])

    def put(self, collection: str, key: str, record: Mapping[str, Any]) -> str:
        """Writes a record durably; returns its content id."""
        cid = content_id(record)
        self.records.setdefault(collection, {})[key] = {"cid": cid, "value": dict(record)}
        write_private(self.path, json.dumps({"secret": self.secret, "records": self.records}))
        return cid

    def get(self, collection: str, key: str) -> dict[str, Any] | None:
        """The record with its content id, or None."""
        found: dict[str, Any] | None = self.records.get(collection, {}).get(key)
        return found


class Pds:
    """What each XRPC method does. One request at a time touches the repository."""

    def __init__(self, account: Account, repository: Repository) -> None:
        """Serves `account` from `repository`."""
        self._account = account
        self._repository = repository
        self._lock = threading.Lock()
        self._spent: set[str] = set()
        self.queries: dict[str, Callable[[Mapping[str, str], str | None], dict[str, Any]]] = {
            "com.atproto.server.describeServer": self._describe_server,
            "com.atproto.server.getSession": self._get_session,
            "com.atproto.repo.getRecord": self._get_record,
            "com.atproto.repo.listRecords": self._list_records,
        }
        self.procedures: dict[str, Callable[[dict[str, Any], str | None], dict[str, Any]]] = {
            "com.atproto.server.createSession": self._create_session,
            "com.atproto.server.refreshSession": self._refresh_session,
            "com.atproto.server.deleteSession": self._delete_session,
            "com.atproto.repo.createRecord": self._create_record,
            "com.atproto.repo.putRecord": self._put_record,
        }

    def _describe_server(self, query: Mapping[str, str], token: str | None) -> dict[str, Any]:
        return {
            "did": "did:web:localhost",
            "availableUserDomains": [],
            "inviteCodeRequired": True,
        }

    def _create_session(self, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        known = body.get("identifier") in (self._account.handle, self._account.did)
        password = str(body.get("password", ""))
        if not known or not secrets.compare_digest(password, self._account.password):
            raise XrpcError(
                HTTPStatus.UNAUTHORIZED,
                "AuthenticationRequired",
                "Invalid identifier or password",
            )
        return self._session()

    def _refresh_session(self, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        claims = self._claims(token, REFRESH_SCOPE)
        with self._lock:
            if claims["jti"] in self._spent:
                raise _expired()
            self._spent.add(claims["jti"])
        return self._session()

    def _delete_session(self, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        claims = self._claims(token, REFRESH_SCOPE)
        with self._lock:
            self._spent.add(claims["jti"])
        return {}

    def _get_session(self, query: Mapping[str, str], token: str | None) -> dict[str, Any]:
        self._claims(token, ACCESS_SCOPE)
        return {"handle": self._account.handle, "did": self._account.did, "active": True}

    def _create_record(self, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        return self._write({"rkey": new_key(), **body}, token)

    def _put_record(self, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        if not body.get("rkey"):
            raise _invalid("rkey is required")
        return self._write(body, token)

    def _write(self, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        self._claims(token, ACCESS_SCOPE)
        self._own(body.get("repo"))
        collection, key, record = body.get("collection"), body["rkey"], body.get("record")
        if not isinstance(collection, str) or not isinstance(record, dict):
            raise _invalid("collection and record are required")
        if record.get("$type", collection) != collection:
            raise _invalid(f"Invalid $type: expected {collection}, got {record['$type']}")
        with self._lock:
            self._check_swap(body, collection, key)
            cid = self._repository.put(collection, key, {"$type": collection, **record})
        return {
            "uri": f"at://{self._account.did}/{collection}/{key}",
            "cid": cid,
            "commit": {"cid": content_id({"record": cid}), "rev": new_key()},
            "validationStatus": "unknown",
        }

    def _check_swap(self, body: dict[str, Any], collection: str, key: str) -> None:
        # An explicit null is a condition too: the record must not exist yet.
        if "swapRecord" not in body:
            return
        there = self._repository.get(collection, key)
        cid = there["cid"] if there else None
        if cid != body["swapRecord"]:
            raise XrpcError(HTTPStatus.BAD_REQUEST, "InvalidSwap", f"Record was at {cid}")

    def _get_record(self, query: Mapping[str, str], token: str | None) -> dict[str, Any]:
        self._own(query.get("repo"))
        collection, key = query.get("collection", ""), query.get("rkey", "")
        found = self._repository.get(collection, key)
        if found is None:
            raise XrpcError(
                HTTPStatus.BAD_REQUEST, "RecordNotFound", f"Could not locate record: {key}"
            )
        return {"uri": f"at://{self._account.did}/{collection}/{key}", **found}

    def _list_records(self, query: Mapping[str, str], token: str | None) -> dict[str, Any]:
        self._own(query.get("repo"))
        collection = query.get("collection", "")
        limit = min(int(query.get("limit", "50")), LIST_MAX)
        with self._lock:
            records = sorted(self._repository.records.get(collection, {}).items(), reverse=True)
        if cursor := query.get("cursor"):
            records = [(key, kept) for key, kept in records if key < cursor]
        page = records[:limit]
        answer: dict[str, Any] = {
            "records": [
                {"uri": f"at://{self._account.did}/{collection}/{key}", **kept}
                for key, kept in page
            ]
        }
        return answer | ({"cursor": page[-1][0]} if len(records) > limit else {})

    def _own(self, repo: object) -> None:
        if repo not in (self._account.did, self._account.handle):
            raise _invalid(f"Could not find repo: {repo}")

    def _session(self) -> dict[str, Any]:
        return {
            "did": self._account.did,
            "handle": self._account.handle,
            "active": True,
            "accessJwt": self._token(ACCESS_SCOPE, ACCESS_SECONDS),
            "refreshJwt": self._token(REFRESH_SCOPE, REFRESH_SECONDS),
        }

    def _token(self, scope: str, seconds: int) -> str:
        now = int(time.time())
        claims = {
            "scope": scope,
            "sub": self._account.did,
            "iat": now,
            "exp": now + seconds,
            "jti": secrets.token_urlsafe(16),
        }
        return jwt.encode(claims, self._account.secret, algorithm="HS256")

    def _claims(self, token: str | None, scope: str) -> dict[str, Any]:
        if token is None:
            raise XrpcError(HTTPStatus.UNAUTHORIZED, "AuthMissing", "Authentication Required")
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._account.secret, algorithms=["HS256"], options={"require": ["exp"]}
            )
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except jwt.InvalidTokenError:
            claims = {}
        if claims.get("scope") != scope:
            raise XrpcError(HTTPStatus.BAD_REQUEST, "InvalidToken", "Bad token scope")
        return claims


def content_id(record: Mapping[str, Any]) -> str:
    """CIDv1 of the record: dag-cbor, SHA-256, base32 (https://atproto.com/specs/data-model)."""
    digest = hashlib.sha256(libipld.encode_dag_cbor(dict(record))).digest()
    encoded = base64.b32encode(b"\x01\x71\x12\x20" + digest).decode().lower().rstrip("=")
    return f"b{encoded}"


def new_key() -> str:
    """A record key from the present time (https://atproto.com/specs/tid)."""
    number = (time.time_ns() // 1000 << 10) | secrets.randbelow(1024)
    return "".join(_TID_ALPHABET[(number >> shift) & 31] for shift in range(60, -1, -5))


def handler_of(pds: Pds) -> type[BaseHTTPRequestHandler]:
    """The HTTP side of `pds`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            self._answer(pds.queries, lambda method: method(query, self._token()))

        def do_POST(self) -> None:
            self._answer(pds.procedures, lambda method: method(self._body(), self._token()))

        def _answer(
            self, methods: Mapping[str, Any], call: Callable[[Any], dict[str, Any]]
        ) -> None:
            name = urlsplit(self.path).path.removeprefix("/xrpc/")
            try:
                if name not in methods:
                    raise XrpcError(
                        HTTPStatus.NOT_IMPLEMENTED, "MethodNotImplemented", "Method Not Implemented"
                    )
                self._send(HTTPStatus.OK, call(methods[name]))
            except XrpcError as error:
                self._send(error.status, {"error": error.name, "message": str(error)})

        def _body(self) -> dict[str, Any]:
            length = int(self.headers.get("content-length") or 0)
            if length > BODY_BYTES_MAX:
                raise XrpcError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "PayloadTooLarge", "request too large"
                )
            raw = self.rfile.read(length)
            try:
                body = json.loads(raw) if raw else {}
            except ValueError:
                body = None
            if not isinstance(body, dict):
                raise _invalid("The body must be a JSON object")
            return body

        def _token(self) -> str | None:
            scheme, _, token = self.headers.get("authorization", "").partition(" ")
            return token if scheme.lower() == "bearer" and token else None

        def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
            payload = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json; charset=utf-8")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

    return Handler


def serve(port: int, state: Path, handle: str, password: str) -> ThreadingHTTPServer:
    """Opens the server on 127.0.0.1; port 0 takes a free one. The caller runs it."""
    repository = Repository.open(state)
    did = "did:web:" + handle
    account = Account(handle, password, did, repository.secret)
    return ThreadingHTTPServer((LOOPBACK, port), handler_of(Pds(account, repository)))


def _invalid(message: str) -> XrpcError:
    return XrpcError(HTTPStatus.BAD_REQUEST, "InvalidRequest", message)


def _expired() -> XrpcError:
    return XrpcError(HTTPStatus.BAD_REQUEST, "ExpiredToken", "Token has expired")


def main(argv: list[str]) -> None:
    """Serves until the process is told to stop."""
    server = serve(
        int(argv[1]), Path(argv[2]), os.environ["PDS_HANDLE"], os.environ["PDS_PASSWORD"]
    )
    sys.stdout.write(f"{READY} on port {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv)
