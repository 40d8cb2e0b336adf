"""A GitHub of ours: stateful, with what Cogni uses of its REST API, checked against its OpenAPI.

It verifies the app's JWT (RS256, issuer, times), mints installation tokens cut down to what was
asked for, and lets each token do that and no more until it expires. tests/peers/test_connections_
github.py holds its answers, and what it was sent, against GitHub's published description.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests import github_shapes as shapes

APP_ID = 123
CLIENT_ID, CLIENT_SECRET = "Iv1.cogni", "cs-canary"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

_LEVELS = ("read", "write", "admin")
# https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps
_COMMENTS = r"/repos/([^/]+/[^/]+)/issues/(\d+)/comments"


@dataclass
class Installed:
    """An installation; `repositories` are the chosen ones."""

    login: str
    permissions: dict[str, str]
    repositories: list[str]
    selected: bool = True
    suspended: bool = False

    def shape(self, id: int, time: str) -> dict[str, Any]:
        """As GitHub shows it."""
        return shapes.installation(id, APP_ID, "cogni", vars(self), time)


@dataclass
class Token:
    """What a token may do, until when; a person's has a login."""

    permissions: dict[str, str]
    repositories: list[str]
    end: datetime
    login: str = ""
    installation_id: int = 0


@dataclass
class Reply:
    """A status, headers in lower case, and JSON content."""

    status: int
    content: Any
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """What was asked and answered, for the check against the description."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    status: int
    content: Any


class Refusal(Exception):
    """An answer other than the one that was asked for."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.reply = Reply(status, shapes.trouble(message), named)


class GitHub:
    """The state, and what requests make of it."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.clock = clock
        self.installations: dict[int, Installed] = {}
        self.tokens: dict[str, Token] = {}
        self.pulls: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.files: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        self.comments: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        self.exchanges: list[Exchange] = []
        #: The next requests are refused with these, whatever they ask for.
        self.refusals: list[Refusal] = []
        #: Called when a comment is stored and its answer not yet sent.
        self.after_comment: Callable[[], None] = lambda: None
        #: Until it is set, what was done is not answered.
        self.hold: asyncio.Event | None = None
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = [
            (method, re.compile(path), answer)
            for method, path, answer in (
                ("GET", r"/app/installations", self._list_installations),
                ("GET", r"/app/installations/(\d+)", self._get_installation),
                ("POST", r"/app/installations/(\d+)/access_tokens", self._mint),
                ("POST", r"/applications/([^/]+)/token/scoped", self._scope),
                ("GET", r"/installation/repositories", self._list_repositories),
                ("GET", r"/user", self._get_user),
                ("GET", r"/repos/([^/]+/[^/]+)/pulls", self._list_pulls),
                ("GET", r"/repos/([^/]+/[^/]+)/pulls/(\d+)/files", self._list_files),
                ("GET", _COMMENTS, self._list_comments),
                ("POST", _COMMENTS, self._comment),
            )
        ]

    def install(self, id: int, login: str, *repositories: str, **permissions: str) -> Installed:
        """Install the app; without permissions it may read metadata alone."""
        made = Installed(login, {"metadata": "read", **permissions}, list(repositories))
        self.installations[id] = made
        return made

    def person(self, login: str, *repositories: str, **permissions: str) -> str:
        """A token of a person who authorised the app."""
        token = f"ghu_{login}{len(self.tokens)}"
        end = self.clock() + timedelta(hours=8)
        self.tokens[token] = Token(dict(permissions), list(repositories), end, login=login)
        return token

    def open_pull(
        self, repository: str, number: int, title: str, login: str = "ann", **patches: str
    ) -> None:
        """Open a pull request that changes these files."""
        given = {"title": title, "login": login, "state": "open", "head": f"work-{number}"}
        self.pulls[repository][number] = given
        self.files[repository, number] = [
            shapes.changed_file(repository, f"{name}.py", patch) for name, patch in patches.items()
        ]

    def add_comment(self, repository: str, number: int, body: str, login: str = "ann") -> None:
        """Somebody else's comment."""
        self._store(repository, number, body, login, "User")

    def bodies(self, repository: str, number: int) -> list[str]:
        """The comments' texts."""
        return [each["body"] for each in self.comments[repository, number]]

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """What GitHub says; header names are in lower case."""
        url = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        sent = json.loads(body) if body else None
        try:
            if self.refusals:
                raise self.refusals.pop(0)
            reply = self._routed(method, url.path, query, headers, sent)
        except Refusal as refusal:
            reply = refusal.reply
        self.exchanges.append(Exchange(method, url.path, query, sent, reply.status, reply.content))
        return reply

    def _routed(
        self, method: str, path: str, query: dict[str, str], headers: Mapping[str, str], sent: Any
    ) -> Reply:
        if not headers.get("user-agent"):
            raise Refusal(403, "Request forbidden by administrative rules.")
        scheme, _, proof = headers.get("authorization", "").partition(" ")
        for wanted, pattern, answer in self._routes:
            match = pattern.fullmatch(path)
            if match is not None and wanted == method:
                return answer((scheme.lower(), proof), query, sent, *match.groups())
        raise Refusal(404, "Not Found")

    def _app(self, proof: tuple[str, str]) -> None:
        """https://docs.github.com/en/apps: generating a JSON Web Token for a GitHub App."""
        try:
            claims = jwt.decode(
                proof[1],
                KEY.public_key(),
                algorithms=["RS256"],
                options={"verify_exp": False, "verify_iat": False, "require": ["iat", "exp"]},
            )
        except jwt.PyJWTError:
            raise Refusal(401, "A JSON web token could not be decoded") from None
        now = self.clock().timestamp()
        if claims["exp"] > now + 600 or claims["exp"] <= now:
            raise Refusal(401, "'Expiration time' claim ('exp') must be at most 10 minutes ahead")
        if claims["iat"] > now:
            raise Refusal(401, "'Issued at' claim ('iat') must be in the past")
        if str(claims.get("iss")) not in (str(APP_ID), CLIENT_ID):
            raise Refusal(401, "'Issuer' claim ('iss') must be the app's id")

    def _token(self, proof: tuple[str, str]) -> Token:
        token = self.tokens.get(proof[1])
        if proof[0] != "bearer" or token is None or token.end <= self.clock():
            raise Refusal(401, "Bad credentials")
        installed = self.installations.get(token.installation_id)
        if token.installation_id and (installed is None or installed.suspended):
            raise Refusal(403, "This installation has been suspended")
        return token

    def _allowed(self, proof: tuple[str, str], repository: str, wanted: str) -> Token:
        token = self._token(proof)
        if repository not in token.repositories:
            raise Refusal(404, "Not Found")
        name, _, level = wanted.partition(":")
        held = token.permissions.get(name, "none")
        if held not in _LEVELS or _LEVELS.index(held) < _LEVELS.index(level):
            raise Refusal(403, "Resource not accessible by integration")
        return token

    def _list_installations(self, proof: Any, query: dict[str, str], sent: Any) -> Reply:
        self._app(proof)
        found = [each.shape(id, self._time()) for id, each in sorted(self.installations.items())]
        return self._page("/app/installations", found, query)

    def _get_installation(self, proof: Any, query: Any, sent: Any, id: str) -> Reply:
        self._app(proof)
        if int(id) not in self.installations:
            raise Refusal(404, "Not Found")
        return Reply(200, self.installations[int(id)].shape(int(id), self._time()))

    def _mint(self, proof: Any, query: Any, sent: Any, id: str) -> Reply:
        self._app(proof)
        installed = self.installations.get(int(id))
        if installed is None:
            raise Refusal(404, "Not Found")
        if installed.suspended:
            raise Refusal(403, "This installation has been suspended")
        asked = sent or {}
        permissions = asked.get("permissions", installed.permissions)
        for name, level in permissions.items():
            held = installed.permissions.get(name, "none")
            if held not in _LEVELS or _LEVELS.index(level) > _LEVELS.index(held):
                raise Refusal(422, "The permissions requested are not granted.")
        names = {each.partition("/")[2]: each for each in installed.repositories}
        if not set(asked.get("repositories", names)) <= set(names):
            raise Refusal(422, "There is at least one repository that does not exist.")
        reached = [names[each] for each in asked.get("repositories", names)]
        token = f"ghs_canary{len(self.tokens):08}"
        end = self.clock() + timedelta(hours=1)
        self.tokens[token] = Token(dict(permissions), reached, end, installation_id=int(id))
        content = {
            "token": token,
            "expires_at": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "permissions": dict(permissions),
            "repository_selection": "selected",
        }
        if "repositories" in asked:
            content["repositories"] = [shapes.repository(each, self._time()) for each in reached]
        return Reply(201, content)

    def _scope(self, proof: Any, query: Any, sent: Any, client_id: str) -> Reply:
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if proof != ("basic", basic) or client_id != CLIENT_ID:
            raise Refusal(404, "Not Found")
        whole = self.tokens.get(sent["access_token"])
        if whole is None or not whole.login or whole.end <= self.clock():
            raise Refusal(404, "Not Found")
        names = {f"{sent['target']}/{name}" for name in sent.get("repositories", [])}
        if not names <= set(whole.repositories):
            raise Refusal(422, "There is at least one repository that does not exist.")
        token = f"ghu_scoped{len(self.tokens):08}"
        permissions = sent.get("permissions", whole.permissions)
        self.tokens[token] = Token(permissions, sorted(names), whole.end, login=whole.login)
        end = whole.end.strftime("%Y-%m-%dT%H:%M:%SZ")
        return Reply(200, shapes.scoped_token(CLIENT_ID, token, end, self._time()))

    def _list_repositories(self, proof: Any, query: Any, sent: Any) -> Reply:
        token = self._token(proof)
        if not token.installation_id:
            raise Refusal(403, "Resource not accessible by integration")
        found = [shapes.repository(each, self._time()) for each in token.repositories]
        return Reply(200, {"total_count": len(found), "repositories": found})

    def _get_user(self, proof: Any, query: Any, sent: Any) -> Reply:
        token = self._token(proof)
        if not token.login:
            raise Refusal(403, "Resource not accessible by integration")
        return Reply(200, shapes.account(token.login, self._time()))

    def _list_pulls(self, proof: Any, query: Any, sent: Any, repository: str) -> Reply:
        self._allowed(proof, repository, "pull_requests:read")
        state = query.get("state", "open")
        found = [
            shapes.pull_request(repository, number, given, self._time())
            for number, given in sorted(self.pulls[repository].items(), reverse=True)
            if state in ("all", given["state"])
        ]
        return self._page(f"/repos/{repository}/pulls", found, query)

    def _list_files(self, proof: Any, query: Any, sent: Any, repository: str, n: str) -> Reply:
        self._allowed(proof, repository, "pull_requests:read")
        if int(n) not in self.pulls[repository]:
            raise Refusal(404, "Not Found")
        found = self.files[repository, int(n)]
        return self._page(f"/repos/{repository}/pulls/{n}/files", found, query)

    def _list_comments(self, proof: Any, query: Any, sent: Any, repository: str, n: str) -> Reply:
        self._allowed(proof, repository, f"{self._kind(repository, n)}:read")
        found = self.comments[repository, int(n)]
        return self._page(f"/repos/{repository}/issues/{n}/comments", found, query)

    def _comment(self, proof: Any, query: Any, sent: Any, repository: str, n: str) -> Reply:
        token = self._allowed(proof, repository, f"{self._kind(repository, n)}:write")
        if not isinstance(sent, dict) or not 0 < len(sent.get("body", "")) <= 65536:
            raise Refusal(422, "Validation Failed")
        login, kind = (token.login, "User") if token.login else ("cogni[bot]", "Bot")
        made = self._store(repository, int(n), sent["body"], login, kind)
        self.after_comment()
        return Reply(201, made)

    def _store(
        self, repository: str, number: int, body: str, login: str, kind: str
    ) -> dict[str, Any]:
        id = 1000 + sum(len(each) for each in self.comments.values())
        given = {"login": login, "kind": kind, "body": body, "time": self._time()}
        made = shapes.comment(repository, number, id, given)
        self.comments[repository, number].append(made)
        return made

    def _kind(self, repository: str, number: str) -> str:
        return "pull_requests" if int(number) in self.pulls[repository] else "issues"

    def _page(self, path: str, found: list[Any], query: Mapping[str, str]) -> Reply:
        size = min(int(query.get("per_page", 30)), 100)
        page, last = int(query.get("page", 1)), max(1, -(-len(found) // size))
        url = f'<{shapes.API}{path}?per_page={size}&page={{}}>; rel="{{}}"'
        links = [url.format(page + 1, "next"), url.format(last, "last")] if page < last else []
        headers = {"link": ", ".join(links)} if links else {}
        return Reply(200, found[(page - 1) * size : page * size], headers)

    def _time(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")


def rate_limited(clock: Callable[[], datetime], seconds: int) -> Refusal:
    """The hourly limit is used up, and begins anew in so many seconds."""
    reset = str(int(clock().timestamp()) + seconds)
    return Refusal(
        403, "API rate limit exceeded", x_ratelimit_remaining="0", x_ratelimit_reset=reset
    )


def too_fast(seconds: int) -> Refusal:
    """The secondary limit."""
    return Refusal(429, "You have exceeded a secondary rate limit", retry_after=str(seconds))


@asynccontextmanager
async def serving(github: GitHub) -> AsyncIterator[str]:
    """host:port where it answers over HTTP. A Cut raised by a hook breaks the connection off."""

    async def handle(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            reply = github.answer(request.method, request.path_qs, headers, await request.read())
        except Cut:
            assert request.transport is not None
            request.transport.abort()
            raise web.HTTPInternalServerError from None
        if github.hold is not None and request.method == "POST":
            await github.hold.wait()
        return web.json_response(reply.content, status=reply.status, headers=reply.headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    yield f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    await runner.cleanup()


class Cut(Exception):
    """The connection breaks off: what was asked is done, and nobody is told."""
