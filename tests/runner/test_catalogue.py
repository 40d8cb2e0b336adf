"""The catalogue: ordinary langgraph.json projects load, and what is wrong is said in a sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.executor.graphs import GraphState, ToolEffect
from services.executor.runner.catalogue import Catalogue, CatalogueError
from services.executor.runner.project import ProjectError

GRAPH = """
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from cogni.graph import post_to_bluesky, tool

@tool(effects="none")
def look(where: str) -> str:
    \"\"\"Look somewhere.\"\"\"
    return where

builder = StateGraph(MessagesState)
builder.add_node("tools", ToolNode([look, post_to_bluesky]))
builder.add_edge(START, "tools")
builder.add_edge("tools", END)
compiled = builder.compile()

def factory(config):
    return builder

async def async_factory():
    return builder

def failing():
    raise RuntimeError("no database")

number = 7
"""


@pytest.fixture(autouse=True)
def _own_imports() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("cogni_graphs_")]:
        del sys.modules[name]


def _project(folder: Path, text: str, **files: str) -> Path:
    (folder / "agent.py").write_text(GRAPH)
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    file = folder / "langgraph.json"
    file.write_text(text)
    return file


def _graphs(folder: Path, *targets: str, **files: str) -> Catalogue:
    named = ", ".join(f'"g{number}": "{target}"' for number, target in enumerate(targets))
    return Catalogue.load(_project(folder, f'{{"graphs": {{{named}}}}}', **files))


async def test_builders_graphs_and_factories_are_all_graphs(tmp_path: Path) -> None:
    targets = ("builder", "compiled", "factory", "async_factory")
    catalogue = _graphs(tmp_path, *[f"./agent.py:{name}" for name in targets])

    published = await catalogue.published()

    assert {each.state for each in published} == {GraphState.AVAILABLE}
    assert [each.nodes for each in published] == [("tools",)] * 4


async def test_a_graph_publishes_its_tools_with_what_they_do(tmp_path: Path) -> None:
    (graph,) = await _graphs(tmp_path, "./agent.py:compiled").published()

    look, post = graph.tools
    assert (look.tool, look.effect, look.provider) == ("look", ToolEffect.NONE, "")
    assert (post.effect, post.provider) == (ToolEffect.IDEMPOTENT, "bluesky")
    assert "where" in str(look.arguments_schema)
    assert "messages" in str(graph.input_schema)


async def test_a_changed_source_is_another_revision(tmp_path: Path) -> None:
    before = _graphs(tmp_path, "./agent.py:compiled").revision("g0")
    after = _graphs(tmp_path, "./agent.py:compiled", extra="x = 1").revision("g0")

    assert before != after


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("./agent.py:nothing", "has no variable 'nothing'"),
        ("./agent.py:number", "is of the type int; it must be a StateGraph"),
        ("./agent.py:failing", "raised RuntimeError: no database"),
        ("./raises.py:graph", "raised ZeroDivisionError"),
        ("./quotes.py:graph", "raised OSError: postgresql://ann:[redacted]@db is away"),
        ("./exits.py:graph", "raised SystemExit"),
        ("./wrong.py:graph", "raised SyntaxError"),
        ("no.such.module:graph", "raised ModuleNotFoundError"),
        ("./missing.py:graph", "names './missing.py', which is not there"),
        ("./reads.py:graph", "raised FileNotFoundError"),
        ("./:graph", "is no Python file and no module"),
        ("/etc/passwd:graph", "is no Python file and no module"),
        ("../agent.ts:graph", "is no Python file and no module"),
    ],
)
async def test_a_broken_graph_is_published_with_the_reason_and_harms_no_other(
    tmp_path: Path, target: str, sentence: str
) -> None:
    catalogue = _graphs(
        tmp_path,
        target,
        "./agent.py:compiled",
        raises="1 / 0",
        exits="raise SystemExit(3)",
        wrong="def",
        reads="open('nothing.txt')",
        quotes="raise OSError('postgresql://ann:secret@db is away')",
    )

    broken, sound = await catalogue.published()

    assert broken.state is GraphState.BROKEN
    assert broken.error is not None
    assert sentence in broken.error
    assert sound.state is GraphState.AVAILABLE
    with pytest.raises(CatalogueError):
        await catalogue.graph("g0")


async def test_what_is_imported_is_told_before_it_begins_because_it_may_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        _graphs(tmp_path, "./raises.py:graph", raises="1 / 0")

    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "importing ./raises.py for the graph 'g0'"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "names no graphs"),
        ('{"graphs": {}}', "names no graphs"),
        ('{"graphs": {"a": "./agent.py"}}', "'path.py:variable'"),
        ('{"graphs": {"a": "./agent.py:compiled"}, "dependencies": "."}', "list of folders"),
        ('{"graphs": {"a": "./agent.py:compiled"}, "env": "missing.env"}', "missing.env"),
        ('{"graphs": {"a": "./agent.py:compiled"}, "env": 7}', "name of a file, or an object"),
        ('{"graphs": {"a\\u0000b": "./agent.py:compiled"}}', "cannot be a graph's name"),
        ('{"graphs": {"a b": "./agent.py:compiled"}}', "cannot be a graph's name"),
        ('{"graphs": {"' + "a" * 201 + '": "./agent.py:compiled"}}', "cannot be a graph's name"),
        ('{"graphs": {"a": "./agent\\u0000.py:compiled"}}', "'path.py:variable'"),
        ("[" * 100_000, "too deeply nested"),
    ],
)
def test_a_malformed_file_says_what_to_do(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ProjectError, match=sentence):
        Catalogue.load(_project(tmp_path, text))


def test_an_absent_file_names_the_variable_to_set(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="COGNI_GRAPHS_FILE"):
        Catalogue.load(tmp_path / "langgraph.json")


def test_the_env_of_the_project_yields_to_the_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_TEST_SET", "operator")
    monkeypatch.delenv("RUNNER_TEST_UNSET", raising=False)
    text = (
        '{"graphs": {"a": "./agent.py:compiled"},'
        ' "env": {"RUNNER_TEST_SET": "project", "RUNNER_TEST_UNSET": "project"}}'
    )

    Catalogue.load(_project(tmp_path, text))

    assert os.environ["RUNNER_TEST_SET"] == "operator"
    assert os.environ.pop("RUNNER_TEST_UNSET") == "project"
