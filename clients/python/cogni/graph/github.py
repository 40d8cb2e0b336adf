"""Tools for GitHub: list pull requests, read one, and comment once however often it is retried."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from langchain_core.tools import BaseTool, StructuredTool, ToolException

from cogni.graph.blocking import blocking
from cogni.graph.github_api import GitHubApi, repository_path
from cogni.graph.invocation import invocation_id
from cogni.graph.policy import Effect, ToolPolicy, with_policy
from cogni.graph.reading import Fields, after_an_act

#: An app's installation first: it acts in its own name, and its token reaches one repository.
PROVIDERS = ("github_app", "github_oauth")

PULL_REQUESTS_MAX = 100
FILES_MAX = 100
#: GitHub's own bound.
COMMENT_LENGTH_MAX = 65_536
#: Of one pull request's patches, what is given to a model at most, in characters.
PATCHES_LENGTH_MAX = 100_000
#: A retry looks for its comment among so many of the newest; more are not written while a run
#: waits to be carried on.
_PAGE_SIZE = 100
_PAGES_MAX = 10


def comment_marker(invocation: str) -> str:
    """What an invocation's comment ends with: GitHub does not show it, and a retry finds it.

    A digest, because the comment is public and the invocation's id is ours.
    """
    digest = hashlib.sha256(f"github-comment:{invocation}".encode()).hexdigest()[:32]
    return f"<!-- cogni:{digest} -->"


async def _list(
    repository: str, state: Literal["open", "closed", "all"] = "open", limit: int = 30
) -> list[dict[str, Any]]:
    size = max(1, min(limit, PULL_REQUESTS_MAX))
    path = f"{repository_path(repository)}/pulls"
    async with GitHubApi() as github:
        found, _ = await github.page(path, 1, size, state=state)
    return [
        {
            "number": each.number("number"),
            "title": each.text("title"),
            "author": _login(each),
            "state": each.text("state"),
            "draft": each.is_true("draft"),
            "branch": each.inner("head").text("ref"),
            "base": each.inner("base").text("ref"),
            "updated_at": each.text("updated_at"),
            "url": each.text("html_url"),
        }
        for each in found
    ]


async def _read(repository: str, number: int) -> list[dict[str, Any]]:
    path = f"{repository_path(repository)}/pulls/{number}/files"
    async with GitHubApi() as github:
        found, _ = await github.page(path, 1, FILES_MAX)
    left = PATCHES_LENGTH_MAX
    files = []
    for each in found:
        # Absent for binary files and for very large changes.
        patch = each.text_if_any("patch")
        shown = patch[:left]
        left -= len(shown)
        files.append(
            {
                "file": each.text("filename"),
                "status": each.text("status"),
                "additions": each.number("additions"),
                "deletions": each.number("deletions"),
                "patch": shown,
                "cut_off": len(shown) < len(patch),
            }
        )
    return files


async def _comment(repository: str, number: int, body: str) -> dict[str, Any]:
    marker = comment_marker(invocation_id())
    text = f"{body.strip()}\n\n{marker}"
    if not body.strip():
        raise ToolException("the comment is empty")
    if len(text) > COMMENT_LENGTH_MAX:
        most = COMMENT_LENGTH_MAX - len(marker) - 2
        raise ToolException(f"the comment has {len(body)} characters; shorten it to {most}")
    path = f"{repository_path(repository)}/issues/{number}/comments"
    async with GitHubApi() as github:
        made = await _own_comment(github, path, marker)
        if made is None:
            made = await github.post(path, {"body": text})
    with after_an_act():
        return {"url": made.text("html_url"), "comment_id": made.number("id")}


async def _own_comment(github: GitHubApi, path: str, marker: str) -> Fields | None:
    """The comment that an earlier try of this invocation left, from the newest page backwards."""
    first, last = await github.page(path, 1, _PAGE_SIZE)
    for number in range(last, max(1, last - _PAGES_MAX), -1):
        page, _ = await github.page(path, number, _PAGE_SIZE)
        if found := await _marked(github, page, marker):
            return found
    return await _marked(github, first, marker)


async def _marked(github: GitHubApi, page: list[Fields], marker: str) -> Fields | None:
    for each in page:
        if each.text_if_any("body").rstrip().endswith(marker) and await _ours(github, each):
            return each
    return None


async def _ours(github: GitHubApi, comment: Fields) -> bool:
    """Whether we wrote it: others can copy a comment with its marker.

    An app's token is nobody's login, and GitHub does not tell it its own: then a bot wrote it,
    which a person who copies cannot be.
    """
    login = await github.login()
    if login is None:
        user = comment.inner_if_any("user")
        return user is not None and user.text_if_any("type") == "Bot"
    return _login(comment) == login


def _login(resource: Fields) -> str:
    user = resource.inner_if_any("user")
    # The account may be gone.
    return (user.text_if_any("login") if user else "") or "ghost"


def _tool(work: Any, name: str, description: str, policy: ToolPolicy) -> BaseTool:
    declared = StructuredTool.from_function(
        func=blocking(work),
        coroutine=work,
        name=name,
        description=description,
        handle_tool_error=True,
    )
    return with_policy(declared, policy)


list_pull_requests = _tool(
    _list,
    "list_pull_requests",
    "List a GitHub repository's pull requests, newest first. `repository` is owner/name.",
    ToolPolicy(
        Effect.NONE,
        connection=PROVIDERS,
        scopes=("pull_requests:read",),
        resource="repository",
        # Anybody can open a pull request and choose its words.
        untrusted=True,
    ),
)

read_pull_request = _tool(
    _read,
    "read_pull_request",
    "Read which files a pull request changes, with their patches. `repository` is owner/name.",
    ToolPolicy(
        Effect.NONE,
        connection=PROVIDERS,
        scopes=("pull_requests:read",),
        resource="repository",
        # Anybody can open a pull request and choose its words.
        untrusted=True,
    ),
)

post_github_comment = _tool(
    _comment,
    "post_github_comment",
    "Comment on a GitHub pull request or issue, in Markdown. `repository` is owner/name, `number` "
    "the pull request's or issue's.",
    ToolPolicy(
        Effect.OUTWARD,
        idempotent=True,
        connection=PROVIDERS,
        # Pull requests are commented on as issues; GitHub asks for the permission of what it is.
        scopes=("issues:write", "pull_requests:write"),
        resource="repository",
    ),
)
