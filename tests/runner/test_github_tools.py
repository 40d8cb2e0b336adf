"""GitHub and HTTP in whole runs: one comment whatever dies, and no token in what is kept."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cogni.egress_rules import EgressRules
from cogni.graph import Credential
from cogni.graph.egress import egress_allowed_by
from services.executor.runner.catalogue import Catalogue
from services.executor.runner.guard import Lease
from services.executor.runner.needs import Need
from tests.github_server import GitHub, Token, serving
from tests.runner.fleet import Fleet
from tests.runner.running import CANARY, DEADLINE_SECONDS, running

EXAMPLES = Path(__file__).parents[2] / "examples"
REPOSITORY = "octo/hello"
TOOLS = ("list_pull_requests", "read_pull_request", "post_github_comment")


@dataclass
class Leases:
    """Leases tokens of our GitHub, cut down to what each tool declares."""

    github: GitHub
    url: str
    needs: dict[str, Need] = field(default_factory=dict)

    async def lease(
        self, holding: Any, connection_ids: Any, need: Need, tool: str, invocation_id: str
    ) -> Lease:
        self.needs[tool] = need
        token = f"ghs_{CANARY}{len(self.github.tokens)}"
        self.github.tokens[token] = Token(
            dict(scope.split(":") for scope in need.scopes),
            list(need.resources),
            datetime.max.replace(tzinfo=UTC),
            installation_id=1,
        )
        fields = {"access_token": token, "base_url": self.url}
        return Lease(connection_ids[0], Credential("bearer", fields), (token,))


@pytest.fixture
async def leases() -> AsyncIterator[Leases]:
    github = GitHub()
    github.install(1, "octo", REPOSITORY)
    github.open_pull(REPOSITORY, 7, "Count faster", count="+one\n-two")
    async with serving(github) as address:
        with egress_allowed_by(EgressRules.parse(address)):
            yield Leases(github, f"http://{address}")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    """The examples, without a model's key."""
    path, modules = list(sys.path), set(sys.modules)
    writer_keys = ("ANTHROPIC", "OPENAI", "GEMINI", "MISTRAL", "GROQ", "OPENROUTER")
    for name in ("DIGEST_MODEL", *(f"{each}_API_KEY" for each in writer_keys)):
        monkeypatch.delenv(name, raising=False)
    yield Catalogue.load(EXAMPLES / "langgraph.json")
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]


async def _assert_kept_nowhere(fleet: Fleet, secret: str) -> None:
    tables = await fleet.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'executor'")
    for table in (row["tablename"] for row in tables):
        (found,) = await fleet.rows(
            f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE '%{secret}%'"
            f" OR t::text LIKE '%' || encode('{secret}', 'hex') || '%'"
        )
        assert found[0] == 0, table


async def test_a_review_is_posted_once_though_its_runner_died_before_it_knew(
    fleet: Fleet, examples: Catalogue, leases: Leases
) -> None:
    github = leases.github
    posted, github.hold = asyncio.Event(), asyncio.Event()
    github.after_comment = posted.set
    grant_id = await fleet.grant(*TOOLS, connection_ids=("c1",))
    run_id = await fleet.start("reviewer", grant_id, input={"repository": REPOSITORY})
    async with running(fleet, examples, connections=leases) as runner:
        runner.loop.wake()
        await asyncio.wait_for(posted.wait(), DEADLINE_SECONDS)
        await fleet.execute(
            "UPDATE run_leases SET epoch = epoch + 1, holder = 'dead',"
            " expire_time = cogni_now() - interval '1 hour' WHERE run_id = $1",
            run_id,
        )
        github.hold.set()
        run = await runner.finished(run_id)

    (body,) = github.bodies(REPOSITORY, 7)
    assert body.startswith("This changes 1 files: count.py.")
    output: Any = run.output
    assert (run.state, run.attempt, "issuecomment" in output["comment"]) == ("SUCCEEDED", 2, True)
    assert [leases.needs[tool].scopes for tool in TOOLS] == [
        ("pull_requests:read",),
        ("pull_requests:read",),
        ("issues:write", "pull_requests:write"),
    ]
    assert {each.resources for each in leases.needs.values()} == {(REPOSITORY,)}
    # The graph has read what its tools gave it as it was: "This changes 1 files".
    log = [e.tool_finished for e in await fleet.events(run_id) if e.HasField("tool_finished")]
    assert {each.tool: each.untrusted for each in log} == {
        "list_pull_requests": True,
        "read_pull_request": True,
        "post_github_comment": False,
    }
    await _assert_kept_nowhere(fleet, f"ghs_{CANARY}")


async def test_a_review_that_the_grant_does_not_let_out_is_not_posted(
    fleet: Fleet, examples: Catalogue, leases: Leases
) -> None:
    grant_id = await fleet.grant(*TOOLS[:2], connection_ids=("c1",))
    arguments = {"repository": REPOSITORY, "number": 7}
    denied = await fleet.start("reviewer", grant_id, input=arguments)
    absent = await fleet.start("reviewer", grant_id, input={**arguments, "number": 9})
    async with running(fleet, examples, connections=leases) as runner:
        outputs: list[Any] = [(await runner.finished(each)).output for each in (denied, absent)]

    assert "does not name the tool" in outputs[0]["comment"]
    assert outputs[1]["comment"] == "no such pull request is open"
    assert leases.github.bodies(REPOSITORY, 7) == []


@dataclass
class KeyLeases:
    """Leases one key for one origin."""

    url: str

    async def lease(
        self, holding: Any, connection_ids: Any, need: Need, tool: str, invocation_id: str
    ) -> Lease:
        fields = {"key": CANARY, "header_name": "X-Key", "allowed_origins": self.url}
        return Lease(connection_ids[0], Credential("api_key", fields), (CANARY,))


async def test_a_key_that_an_api_sends_back_does_not_come_through(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    async def echo(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"you sent {request.headers['X-Key']}")

    runner = web.ServerRunner(web.Server(echo))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    address = f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    graphs.PROVIDER["url"] = f"http://{address}"
    grant_id = await fleet.grant("http_request", connection_ids=("c1",))
    run_id = await fleet.start("fetching", grant_id)
    with egress_allowed_by(EgressRules.parse(address)):
        async with running(fleet, catalogue, connections=KeyLeases(f"http://{address}")) as carried:
            run = await carried.finished(run_id)
    await runner.cleanup()

    output: Any = run.output
    assert "you sent [credential]" in output["words"][0]
    assert "untrusted" not in output["words"][0], "code that calls a tool gets the plain value"
    (told,) = [e.tool_finished for e in await fleet.events(run_id) if e.HasField("tool_finished")]
    assert told.untrusted
    await _assert_kept_nowhere(fleet, CANARY)
