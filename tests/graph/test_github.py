"""The GitHub tools: what they ask for, and that a retry comments nothing again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from cogni.egress_rules import EgressRules
from cogni.graph import (
    Credential,
    list_pull_requests,
    post_github_comment,
    read_pull_request,
)
from cogni.graph.egress import EgressError, egress_allowed_by
from cogni.graph.github import comment_marker
from cogni.graph.invocation import Invocation, serving
from tests.github_server import Cut, GitHub, Token, rate_limited, too_fast
from tests.github_server import serving as serving_github

REPOSITORY = "octo/hello"


@dataclass
class Hub:
    """Our GitHub with two pull requests and an issue, and tokens for it."""

    github: GitHub
    url: str
    made: list[str] = field(default_factory=list)

    def token(self, **permissions: str) -> str:
        """An app's token of this repository."""
        name = f"ghs_test{len(self.made)}"
        self.made.append(name)
        self.github.tokens[name] = Token(
            permissions, [REPOSITORY], datetime.max.replace(tzinfo=UTC), installation_id=1
        )
        return name

    @contextmanager
    def leased(self, token: str = "", invocation_id: str = "inv-1") -> Iterator[None]:
        token = token or self.token(pull_requests="write", issues="write")
        fields = {"access_token": token, "base_url": self.url}
        rules = EgressRules.parse(self.url.removeprefix("http://"))
        with (
            serving(Invocation(invocation_id, Credential("bearer", fields))),
            egress_allowed_by(rules),
        ):
            yield

    async def comment(self, body: str = "Nice.", number: int = 7, **leased: str) -> Any:
        with self.leased(**leased):
            return await post_github_comment.ainvoke(
                {"repository": REPOSITORY, "number": number, "body": body}
            )


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    github = GitHub()
    github.install(1, "octo", REPOSITORY)
    github.open_pull(REPOSITORY, 7, "Count faster", count="+one\n-two", read="+three")
    github.open_pull(REPOSITORY, 8, "Read slower", login="bea")
    async with serving_github(github) as address:
        yield Hub(github, f"http://{address}")


async def test_pull_requests_are_listed_and_read(hub: Hub) -> None:
    with hub.leased(hub.token(pull_requests="read")):
        listed = await list_pull_requests.ainvoke({"repository": REPOSITORY})
        few = await asyncio.to_thread(
            list_pull_requests.invoke, {"repository": REPOSITORY, "limit": 1}
        )
        files = await read_pull_request.ainvoke({"repository": REPOSITORY, "number": 7})

    assert [(each["number"], each["title"], each["author"]) for each in listed] == [
        (8, "Read slower", "bea"),
        (7, "Count faster", "ann"),
    ]
    assert len(few) == 1
    assert [(each["file"], each["patch"]) for each in files] == [
        ("count.py", "+one\n-two"),
        ("read.py", "+three"),
    ]


async def test_a_retried_invocation_comments_once_and_answers_the_same(hub: Hub) -> None:
    # Ours is neither on the first page of comments nor on the last.
    for number in range(120):
        hub.github.add_comment(REPOSITORY, 7, f"me too {number}")
    first = await hub.comment()
    for number in range(150):
        hub.github.add_comment(REPOSITORY, 7, f"me too {number}")
    second = await hub.comment()
    other = await hub.comment(invocation_id="inv-2")

    assert first == second != other
    ours = [body for body in hub.github.bodies(REPOSITORY, 7) if "Nice." in body]
    assert ours == [f"Nice.\n\n{comment_marker(each)}" for each in ("inv-1", "inv-2")]


async def test_a_comment_whose_answer_was_lost_is_found_by_the_retry(hub: Hub) -> None:
    def cut() -> None:
        hub.github.after_comment = lambda: None
        raise Cut

    hub.github.after_comment = cut
    with pytest.raises(EgressError) as lost:
        await hub.comment()
    found = await hub.comment()

    assert lost.value.maybe_done
    assert "issuecomment" in found["url"]
    assert len(hub.github.bodies(REPOSITORY, 7)) == 1


@pytest.mark.parametrize("person", [False, True])
async def test_a_copy_of_the_marker_by_somebody_else_is_not_ours(hub: Hub, person: bool) -> None:
    hub.github.add_comment(REPOSITORY, 7, f"Nasty.\n\n{comment_marker('inv-1')}", login="mallory")
    token = hub.github.person("ann", REPOSITORY, issues="write", pull_requests="write")

    await hub.comment(token=token if person else "")
    await hub.comment(token=token if person else "")

    assert len(hub.github.bodies(REPOSITORY, 7)) == 2


@pytest.mark.parametrize("limit", ["hourly", "secondary"])
async def test_a_limit_says_when_to_try_again(hub: Hub, limit: str) -> None:
    refusal = rate_limited(hub.github.clock, 90) if limit == "hourly" else too_fast(90)
    hub.github.refusals = [refusal]

    told = await hub.comment()

    assert "try again in 9" in told or "try again in 8" in told
    assert hub.github.bodies(REPOSITORY, 7) == []


async def test_a_refusal_says_what_is_missing_and_shows_no_token(hub: Hub) -> None:
    reading = hub.token(pull_requests="read")
    answers = [
        await hub.comment(token=reading),
        await hub.comment(token="ghs_over"),
        await hub.comment(number=7, body=" "),
        await hub.comment(body="x" * 70_000),
    ]
    with hub.leased(reading):
        answers.append(await list_pull_requests.ainvoke({"repository": "octo/other"}))
        answers.append(await list_pull_requests.ainvoke({"repository": "octo/../../user"}))

    for told, wanted in zip(
        answers,
        (
            "Resource not accessible by integration",
            "no longer honours the credential",
            "empty",
            "shorten it to",
            "does not reach the repository",
            "no repository like owner/name",
        ),
        strict=True,
    ):
        assert wanted in told
        assert "ghs_" not in told
    assert hub.github.bodies(REPOSITORY, 7) == []


async def test_a_private_address_is_refused_unless_the_operator_allows_it(hub: Hub) -> None:
    with hub.leased():
        elsewhere = {"access_token": "ghs_x", "base_url": "https://10.0.0.1"}
        with serving(Invocation("inv-1", Credential("bearer", elsewhere))):
            told = await list_pull_requests.ainvoke({"repository": REPOSITORY})

    assert "may not call that server" in told
