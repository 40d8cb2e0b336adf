"""What we send to GitHub, and what our stand-in answers, against GitHub's own description of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytest

from cogni.egress_rules import EgressRules
from cogni.graph import Credential, list_pull_requests, post_github_comment, read_pull_request
from cogni.graph.egress import egress_allowed_by
from cogni.graph.invocation import Invocation
from cogni.graph.invocation import serving as served_by
from services.connections.adapters.egress import Egress
from services.connections.providers.failures import ProviderError
from services.connections.providers.github_app import github_app
from services.connections.providers.github_installations import AppKey
from services.connections.providers.github_oauth import github_oauth
from services.connections.providers.oauth import OAuthClient
from services.connections.providers.provider import LeaseWish, Material, ProviderSettings
from services.connections.secret import Session
from tests.github_server import (
    APP_ID,
    CLIENT_ID,
    CLIENT_SECRET,
    PEM,
    Exchange,
    GitHub,
    rate_limited,
    serving,
    too_fast,
)
from tests.peers.node_servers import SCRIPTS
from tools.peers import need, npm_project, run

PACKAGES = {"@octokit/openapi": "23.0.2", "ajv": "8.20.0", "ajv-formats": "3.0.1"}
REPOSITORY = "octo/hello"
READ, WRITE = ("pull_requests:read",), ("issues:write", "pull_requests:write")


def complaints(exchanges: list[Exchange]) -> list[str]:
    """What GitHub's description has against them."""
    folder = npm_project("github", PACKAGES)
    shutil.copy(SCRIPTS / "github_check.mjs", folder / "github_check.mjs")
    sent = json.dumps([asdict(each) for each in exchanges])
    found: list[str] = json.loads(run([need("node"), "github_check.mjs"], cwd=folder, stdin=sent))
    return found


def github_with_everything() -> GitHub:
    github = GitHub()
    github.install(1, "octo", REPOSITORY, issues="write", pull_requests="write")
    github.install(2, "other").suspended = True
    github.open_pull(REPOSITORY, 7, "Count faster", count="+one\n-two")
    for number in range(120):
        github.add_comment(REPOSITORY, 7, f"me too {number}")
    return github


async def use_connections(github: GitHub, address: str) -> str:
    """List, mint, cut down and probe as Connections does; a token cut down for a comment."""
    now = github.clock()
    egress = Egress(EgressRules.parse(address))
    provider = github_app({"main": AppKey(PEM, api_url=f"http://{address}")})
    values = {"app_id": str(APP_ID), "private_key": "main", "api_url": f"http://{address}"}
    settings = provider.parse_settings({**values, "installation_id": "1"})
    suspended = provider.parse_settings({**values, "installation_id": "2"})
    gone = provider.parse_settings({**values, "installation_id": "3"})
    assert isinstance(settings, ProviderSettings)
    assert provider.sessions is not None
    assert provider.narrow is not None
    assert provider.probe is not None
    assert provider.installations is not None
    for page in (1, 2):
        await provider.installations.page(settings, page, 1, egress, now)
    session = await provider.sessions.begin(Material(settings, None), egress, now)
    await provider.probe(Material(settings, None, session), egress, now)
    for wrong in (suspended, gone):
        with pytest.raises(ProviderError):
            await provider.sessions.begin(Material(wrong, None), egress, now)
        with pytest.raises(ProviderError):
            await provider.narrow(Material(wrong, None), LeaseWish(READ), egress, now)
    wish = LeaseWish(("contents:write",))
    with pytest.raises(ProviderError):
        await provider.narrow(Material(settings, None), wish, egress, now)
    person = github_oauth(OAuthClient(CLIENT_ID, CLIENT_SECRET), api=f"http://{address}")
    token = github.person("ann", REPOSITORY, issues="write", pull_requests="write")
    whole = Session({"access_token": token}, now + timedelta(hours=8))
    assert person.narrow is not None
    wish = LeaseWish(WRITE, (REPOSITORY,))
    cut = await person.narrow(Material(None, None, whole), wish, egress, now)
    narrowed = await provider.narrow(Material(settings, None), wish, egress, now)
    await egress.close()
    await use_tools(cut.values["access_token"], address, "person")
    return narrowed.values["access_token"]


async def use_tools(token: str, address: str, invocation_id: str) -> None:
    fields = {"access_token": token, "base_url": f"http://{address}"}
    arguments: dict[str, Any] = {"repository": REPOSITORY, "number": 7}
    invocation = Invocation(invocation_id, Credential("bearer", fields))
    with served_by(invocation), egress_allowed_by(EgressRules.parse(address)):
        assert len(await list_pull_requests.ainvoke({"repository": REPOSITORY})) == 1
        assert len(await read_pull_request.ainvoke(arguments)) == 1
        for _ in range(2):
            made = await post_github_comment.ainvoke({**arguments, "body": "Nice."})
            assert "issuecomment" in made["url"]


async def test_every_request_and_every_answer_is_as_github_describes_it() -> None:
    github = github_with_everything()
    async with serving(github) as address:
        token = await use_connections(github, address)
        await use_tools(token, address, "app")
        for refusal in (rate_limited(github.clock, 60), too_fast(60)):
            github.refusals = [refusal]
            fields = {"access_token": token, "base_url": f"http://{address}"}
            with (
                served_by(Invocation("limited", Credential("bearer", fields))),
                egress_allowed_by(EgressRules.parse(address)),
            ):
                told = await list_pull_requests.ainvoke({"repository": REPOSITORY})
            assert "try again" in told

    assert complaints(github.exchanges) == []
    operations = {(each.method, each.path, each.status) for each in github.exchanges}
    assert len(operations) >= 15


async def test_the_check_finds_what_github_would_not_say() -> None:
    path = f"/repos/{REPOSITORY}/issues/7/comments"
    wrong = [
        Exchange("POST", path, {}, {"text": "a"}, 201, {}),
        Exchange("GET", path, {"per_pages": "1"}, None, 200, [{"id": "1"}]),
        Exchange("GET", "/nowhere", {}, None, 200, {}),
    ]

    found = complaints(wrong)

    assert any("body" in each for each in found)
    assert any("per_pages" in each for each in found)
    assert any("answer 200" in each for each in found)
    assert any("no such operation" in each for each in found)
