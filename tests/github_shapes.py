"""GitHub's resources as JSON, whole: every field that its OpenAPI description demands is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

API = "https://api.github.com"
SITE = "https://github.com"

_REPOSITORY_URLS = (
    "archive assignees blobs branches collaborators comments commits compare contents contributors "
    "deployments downloads events forks git_commits git_refs git_tags hooks issue_comment "
    "issue_events issues keys labels languages merges milestones notifications pulls releases "
    "stargazers statuses subscribers subscription tags teams trees clone git ssh svn"
)
_USER_URLS = (
    "avatar events followers following gists organizations received_events repos starred "
    "subscriptions"
)
_REPOSITORY_COUNTS = (
    "forks forks_count open_issues open_issues_count size stargazers_count watchers watchers_count"
)


def user(login: str, kind: str = "User") -> dict[str, Any]:
    """A simple-user."""
    # A bot's login ends with "[bot]".
    escaped = quote(login)
    url = f"{API}/users/{escaped}"
    return {
        "login": login,
        "id": sum(login.encode()),
        "node_id": f"U_{login}",
        "gravatar_id": "",
        "html_url": f"{SITE}/{escaped}",
        "site_admin": False,
        "type": kind,
        "url": url,
        **{f"{name}_url": f"{url}/{name}" for name in _USER_URLS.split()},
    }


def account(login: str, time: str) -> dict[str, Any]:
    """A public-user, as GET /user answers."""
    texts = dict.fromkeys(("bio", "blog", "company", "email", "location", "name"), "")
    counts = dict.fromkeys(("followers", "following", "public_gists", "public_repos"), 0)
    return {
        **user(login),
        **texts,
        "email": None,
        **counts,
        "hireable": None,
        "user_view_type": "public",
        "created_at": time,
        "updated_at": time,
    }


def repository(full_name: str, time: str) -> dict[str, Any]:
    """A repository."""
    owner, _, name = full_name.partition("/")
    url = f"{API}/repos/{full_name}"
    flags = ("has_downloads", "has_issues", "has_projects", "has_wiki", "has_pages")
    return {
        "id": sum(full_name.encode()),
        "node_id": f"R_{name}",
        "name": name,
        "full_name": full_name,
        "owner": user(owner, "Organization"),
        "url": url,
        "html_url": f"{SITE}/{full_name}",
        "default_branch": "main",
        "description": None,
        "homepage": None,
        "language": None,
        "license": None,
        "mirror_url": None,
        "private": False,
        "fork": False,
        "archived": False,
        "disabled": False,
        "pushed_at": time,
        "created_at": time,
        "updated_at": time,
        **dict.fromkeys(flags, False),
        **dict.fromkeys(_REPOSITORY_COUNTS.split(), 0),
        **{f"{each}_url": f"{url}/{each}" for each in _REPOSITORY_URLS.split()},
    }


def pull_request(
    full_name: str, number: int, given: Mapping[str, Any], time: str
) -> dict[str, Any]:
    """A pull-request-simple; `given` has title, login, state and head."""
    url = f"{API}/repos/{full_name}/pulls/{number}"
    page = f"{SITE}/{full_name}/pull/{number}"
    author = user(given["login"])
    side = {"repo": repository(full_name, time), "sha": "0" * 40, "user": author}
    links = ("comments", "commits", "statuses", "html", "issue", "review_comments", "self")
    return {
        "id": number,
        "node_id": f"PR_{number}",
        "number": number,
        "url": url,
        "html_url": page,
        "diff_url": f"{page}.diff",
        "patch_url": f"{page}.patch",
        "issue_url": f"{API}/repos/{full_name}/issues/{number}",
        "commits_url": f"{url}/commits",
        "review_comments_url": f"{url}/comments",
        "review_comment_url": f"{url}/comments{{/number}}",
        "comments_url": f"{API}/repos/{full_name}/issues/{number}/comments",
        "statuses_url": f"{API}/repos/{full_name}/statuses/{'0' * 40}",
        "state": given["state"],
        "locked": False,
        "draft": False,
        "title": given["title"],
        "body": given.get("body"),
        "user": author,
        "labels": [],
        "milestone": None,
        "assignee": None,
        "created_at": time,
        "updated_at": time,
        "closed_at": None if given["state"] == "open" else time,
        "merged_at": None,
        "merge_commit_sha": None,
        "author_association": "NONE",
        "auto_merge": None,
        "head": {"label": f"{given['login']}:{given['head']}", "ref": given["head"], **side},
        "base": {"label": "main", "ref": "main", **side},
        "_links": {each: {"href": url} for each in (*links, "review_comment")},
    }


def changed_file(full_name: str, filename: str, patch: str) -> dict[str, Any]:
    """A diff-entry."""
    lines = patch.splitlines()
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    return {
        "sha": "1" * 40,
        "filename": filename,
        "status": "modified",
        "additions": added,
        "deletions": removed,
        "changes": added + removed,
        "blob_url": f"{SITE}/{full_name}/blob/{filename}",
        "raw_url": f"{SITE}/{full_name}/raw/{filename}",
        "contents_url": f"{API}/repos/{full_name}/contents/{filename}",
        "patch": patch,
    }


def comment(full_name: str, number: int, id: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """An issue-comment; `given` has login, kind, body and time."""
    return {
        "id": id,
        "node_id": f"IC_{id}",
        "url": f"{API}/repos/{full_name}/issues/comments/{id}",
        "html_url": f"{SITE}/{full_name}/issues/{number}#issuecomment-{id}",
        "issue_url": f"{API}/repos/{full_name}/issues/{number}",
        "user": user(given["login"], given["kind"]),
        "body": given["body"],
        "author_association": "NONE",
        "created_at": given["time"],
        "updated_at": given["time"],
    }


def installation(
    id: int, app_id: int, slug: str, given: Mapping[str, Any], time: str
) -> dict[str, Any]:
    """An installation; `given` has login, permissions, selected and suspended."""
    return {
        "id": id,
        "app_id": app_id,
        "app_slug": slug,
        "target_id": sum(given["login"].encode()),
        "target_type": "Organization",
        "account": user(given["login"], "Organization"),
        "single_file_name": None,
        "repository_selection": "selected" if given["selected"] else "all",
        "access_tokens_url": f"{API}/app/installations/{id}/access_tokens",
        "html_url": f"{SITE}/organizations/{given['login']}/settings/installations/{id}",
        "repositories_url": f"{API}/installation/repositories",
        "events": [],
        "permissions": dict(given["permissions"]),
        "created_at": time,
        "updated_at": time,
        "suspended_by": user("admin") if given["suspended"] else None,
        "suspended_at": time if given["suspended"] else None,
    }


def scoped_token(client_id: str, token: str, end: str, time: str) -> dict[str, Any]:
    """An authorization: a user's token cut down to an account's repositories."""
    return {
        "id": 1,
        "url": f"{API}/authorizations/1",
        "app": {"client_id": client_id, "name": "cogni", "url": SITE},
        "token": token,
        "hashed_token": None,
        "token_last_eight": token[-8:],
        "fingerprint": None,
        "note": None,
        "note_url": None,
        "scopes": [],
        "created_at": time,
        "updated_at": time,
        "expires_at": end,
    }


def trouble(message: str) -> dict[str, Any]:
    """An error, basic and of validation alike."""
    return {"message": message, "documentation_url": "https://docs.github.com/rest"}
