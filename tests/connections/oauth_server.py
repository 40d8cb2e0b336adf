"""A strict OAuth server for tests: PKCE, single-use codes and refresh tokens, families that die.

As oidc-provider does (tests/peers runs the same story against it): using a refresh token twice
kills the whole family, the newest token included. Runs in a thread or, as a process, serves
trials whose clients are killed: `python -m tests.connections.oauth_server PORT`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CLIENT_ID, CLIENT_SECRET = "cogni-client", "CANARY-5d1f-client-secret"


@dataclass
class Family:
    """One person's authorization: one refresh token is good, until one is used twice."""

    current: str
    alive: bool = True
    rotations: int = 0
    uses: int = 0


@dataclass
class OAuthServer:
    """The state behind the endpoints, and what a test wants to go wrong."""

    access_seconds: int = 3600
    delay_seconds: float = 0.0
    scope: str = "read write"
    token_type: str = "Bearer"
    answer_instead: tuple[int, str, bytes] | None = None
    families: dict[str, Family] = field(default_factory=dict)
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    token_requests: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def authorize(self, query: dict[str, str]) -> str:
        """The person says yes: a code bound to redirect URI and challenge."""
        assert query["code_challenge_method"] == "S256"
        assert query["client_id"] == CLIENT_ID
        code = secrets.token_urlsafe(16)
        self.codes[code] = (query["redirect_uri"], query["code_challenge"])
        return code

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """The token endpoint."""
        expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if authorization != f"Basic {expected}":
            return 401, {"error": "invalid_client"}
        with self.lock:
            self.token_requests.append(form)
            if form["grant_type"] == "authorization_code":
                return self._exchange(form)
            return self._refresh(form)

    def _exchange(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        redirect_uri, challenge = self.codes.pop(form["code"], ("", ""))
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        proof = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if not challenge or proof != challenge or redirect_uri != form["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        return 200, self._tokens(secrets.token_hex(8), Family(""))

    def _refresh(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        name = form["refresh_token"].split(".")[1] if "." in form["refresh_token"] else ""
        family = self.families.get(name)
        if family is None or not family.alive:
            return 400, {"error": "invalid_grant"}
        family.uses += 1
        if form["refresh_token"] != family.current:
            family.alive = False
            return 400, {"error": "invalid_grant"}
        family.rotations += 1
        return 200, self._tokens(name, family)

    def _tokens(self, name: str, family: Family) -> dict[str, Any]:
        family.current = f"CANARY-5d1f-refresh.{name}.{secrets.token_urlsafe(12)}"
        self.families[name] = family
        return {
            "access_token": f"CANARY-5d1f-access.{name}.{family.rotations}",
            "refresh_token": family.current,
            "token_type": self.token_type,
            "expires_in": self.access_seconds,
            "scope": self.scope,
        }

    def new_family(self) -> str:
        """A refresh token that somebody was given elsewhere."""
        with self.lock:
            return str(self._tokens(secrets.token_hex(8), Family(""))["refresh_token"])

    def report(self) -> dict[str, Any]:
        """What a trial checks afterwards."""
        with self.lock:
            return {
                name: {
                    "alive": family.alive,
                    "current": family.current,
                    "rotations": family.rotations,
                    "uses": family.uses,
                }
                for name, family in self.families.items()
            }


def serve(server: OAuthServer, port: int = 0) -> ThreadingHTTPServer:
    """The endpoints /token, /new and /report on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"] or 0)).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            status, content = server.token(form, self.headers.get("authorization", ""))
            time.sleep(server.delay_seconds)
            if server.answer_instead is not None:
                self._send(*server.answer_instead)
            else:
                self._send(status, "application/json", json.dumps(content).encode())

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            content = server.new_family() if path == "/new" else server.report()
            self._send(200, "application/json", json.dumps(content).encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                # The client was killed while it waited, which is what the trials are about.
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            """Keep quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    return http


if __name__ == "__main__":
    serve(OAuthServer(delay_seconds=float(sys.argv[2])), int(sys.argv[1])).serve_forever()
