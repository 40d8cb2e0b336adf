"""The example graphs do what their README says, and refuse what they should."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from langchain_core.messages import HumanMessage
from langchain_core.tools import ToolException

from cogni.egress_rules import EgressRules
from cogni.graph.egress import egress_allowed_by

EXAMPLES = Path(__file__).parents[2] / "examples"

ATOM = b"""<?xml version="1.0" encoding="utf-8"?>
<feed xmlns="http://www.w3.org/2005/Atom"><title>Releases</title>
<entry><title>  v2: faster
 starts </title></entry><entry><title>v1</title></entry></feed>"""

RSS = b"""<rss version="2.0"><channel><title>News</title>
<item><title>Second</title></item><item><title>First</title></item></channel></rss>"""

BOMB = b"""<!DOCTYPE lolz [<!ENTITY lol "lol">]><rss><channel><item><title>&lol;</title></item>
</channel></rss>"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Imports a module of the examples as LangGraph would, and forgets it afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and EXAMPLES in Path(str(sys.modules[name].__file__)).parents
        ):
            del sys.modules[name]


def git(repository: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(repository), *identity, *arguments], check=True)


def test_titles_of_an_atom_feed_are_found_in_order_and_made_one_line(example) -> None:
    assert example("changes").feed_titles(ATOM, 10) == ["v2: faster starts", "v1"]


def test_titles_of_an_rss_feed_are_limited(example) -> None:
    assert example("changes").feed_titles(RSS, 1) == ["Second"]


def test_a_feed_that_declares_entities_is_refused(example) -> None:
    with pytest.raises(ToolException, match="document type"):
        example("changes").feed_titles(BOMB, 10)


def test_a_document_that_is_no_xml_is_refused(example) -> None:
    with pytest.raises(ToolException, match="not well-formed"):
        example("changes").feed_titles(b"<html>", 10)


async def test_the_newest_commits_of_a_repository_are_read(example, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    for subject in ("first", "second"):
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", subject)

    titles = await example("changes").read_changes.ainvoke({"source": str(tmp_path), "limit": 5})

    assert titles == ["second", "first"]


async def test_a_source_that_is_not_there_is_told(example, tmp_path: Path) -> None:
    with pytest.raises(ToolException, match="can not be read: No such file"):
        await example("changes").read_changes.ainvoke({"source": str(tmp_path / "gone")})


async def test_a_feed_is_read_where_the_operator_allows_it_and_no_further(example) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/moved":
            return web.Response(status=302, headers={"location": "http://169.254.169.254/"})
        return web.Response(body=ATOM if request.path == "/feed" else b"x" * (4 * 1024 * 1024 + 1))

    app = web.Application()
    app.router.add_get("/{path}", answer)
    told = []
    async with TestServer(app) as server:
        address = f"127.0.0.1:{server.port}"
        download = example("changes")._download
        with egress_allowed_by(EgressRules.parse(address)):
            feed = await download(f"http://{address}/feed")
            for path in ("moved", "large"):
                with pytest.raises(ToolException) as refused:
                    await download(f"http://{address}/{path}")
                told.append(str(refused.value))
        with pytest.raises(ToolException, match="may not call that server"):
            await example("changes").read_changes.ainvoke({"source": f"https://{address}/feed"})

    assert feed == ATOM
    assert "has moved to http://169.254.169.254/" in told[0]
    assert "too large" in told[1]


def test_the_mock_answers_with_the_titles_and_fits_a_post(example) -> None:
    listed = "The newest changes:\n" + "\n".join(f"- change {n}" for n in range(100))

    text = example("writer").mocked_digest([HumanMessage(listed)])

    assert text.startswith("What changed (100): change 0; change 1")
    assert len(text) == 300


def test_the_model_is_the_one_whose_key_is_there_unless_one_is_named(example) -> None:
    writer = example("writer")

    assert writer.model_name({}) is None
    assert writer.model_name({"OPENAI_API_KEY": "k"}) == "openai/gpt-5-mini"
    assert writer.model_name({"OPENAI_API_KEY": "k", "DIGEST_MODEL": "x/y"}) == "x/y"
