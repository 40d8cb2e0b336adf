"""The graphs that a langgraph.json names: loads them, and says what each of them is."""

import asyncio
import hashlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from services.executor.graphs import Graph, GraphState
from services.executor.runner.describing import AnyGraph, described
from services.executor.runner.project import ProjectError, read_project
from services.runtime.logs import redact

_log = logging.getLogger(__name__)

#: A folder with more files, or a larger one, is no project of graphs.
_FILES_MAX = 5000


class CatalogueError(Exception):
    """Raised when a graph cannot be run here; the text says why."""

    def __init__(self, sentence: str) -> None:
        # Every tenant reads it, and what graph code raises may quote the URL of its database.
        super().__init__(redact(sentence))


class _NotThere(Exception):
    """The file that should hold the graph is missing; one that the graph itself misses is not."""


class _NoPython(Exception):
    """What should hold the graph cannot be imported by any name."""


@dataclass(frozen=True)
class _Entry:
    """A graph's variable, or why there is none."""

    revision: str
    target: Any = None
    error: str | None = None


class Catalogue:
    """The graphs of one langgraph.json, imported once."""

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self._entries = dict(entries)

    @classmethod
    def load(cls, path: Path) -> "Catalogue":
        """Import every graph that the file names; one that fails is kept as BROKEN.

        Also takes over its `env` for variables that are not set, and puts its local
        `dependencies` on the import path. Raises ProjectError.
        """
        project = read_project(path)
        root = path.parent.resolve()
        _take_environment(project.env, root, path)
        for each in project.dependencies:
            folder = (root / each).resolve()
            if each.startswith(".") and str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        revision = _revision(root, path)
        return cls(
            {name: _import(name, target, root, revision) for name, target in project.graphs.items()}
        )

    def revision(self, graph_id: str) -> str:
        """The revision that is loaded; empty for a graph that is not here."""
        entry = self._entries.get(graph_id)
        return entry.revision if entry else ""

    async def graph(self, graph_id: str) -> AnyGraph:
        """Return the compiled graph. Raises CatalogueError when it is missing or broken."""
        entry = self._entries.get(graph_id)
        if entry is None:
            raise CatalogueError(f"No runner here has the graph {graph_id!r}.")
        if entry.error is not None:
            raise CatalogueError(entry.error)
        return await _compiled(graph_id, entry.target)

    async def published(self) -> list[Graph]:
        """Describe every graph for the Executor's catalogue, broken ones with the reason."""
        return [await self._described(graph_id) for graph_id in self._entries]

    async def _described(self, graph_id: str) -> Graph:
        entry = self._entries[graph_id]
        try:
            graph = await self.graph(graph_id)
            return described(graph_id, entry.revision, graph)
        except CatalogueError as error:
            return Graph(graph_id, entry.revision, GraphState.BROKEN, error=str(error))


def _take_environment(env: Any, root: Path, path: Path) -> None:
    if isinstance(env, dict):
        pairs = {str(name): str(value) for name, value in env.items()}
    elif isinstance(env, str):
        try:
            text = (root / env).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise ProjectError(
                f"{path} names the env file {env!r}, which cannot be read."
            ) from None
        lines = (line.strip() for line in text.splitlines())
        parts = (line.partition("=") for line in lines if line and not line.startswith("#"))
        pairs = {name.strip(): value.strip().strip("\"'") for name, _, value in parts}
    else:
        return
    for name, value in pairs.items():
        # The operator's environment wins, as with LangGraph's own server.
        os.environ.setdefault(name, value)


def _revision(root: Path, path: Path) -> str:
    """A digest of the project's Python sources and of the file that names the graphs."""
    digest = hashlib.sha256(path.read_bytes())
    files = sorted(file for file in root.rglob("*.py") if not _skipped(file.relative_to(root)))
    for file in files[:_FILES_MAX]:
        digest.update(str(file.relative_to(root)).encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _skipped(relative: Path) -> bool:
    return any(
        part.startswith(".") or part in ("__pycache__", "node_modules") for part in relative.parts
    )


def _import(name: str, target: str, root: Path, revision: str) -> _Entry:
    where, _, variable = target.rpartition(":")
    file = (root / where).resolve()
    # Before it begins: of a file that blocks, this is the last that anyone hears.
    _log.info("importing %s for the graph %r", where, name)
    try:
        module = _module(file, where)
        found = getattr(module, variable)
    except _NotThere:
        return _Entry(revision, error=f"The graph {name!r} names {where!r}, which is not there.")
    except _NoPython:
        return _Entry(
            revision,
            error=f"The graph {name!r} names {where!r}, which is no Python file and no module; "
            "name it like './agent.py:graph' or 'package.agent:graph'.",
        )
    except AttributeError as error:
        if not str(error).endswith(f"has no attribute {variable!r}"):
            return _Entry(revision, error=_raised(name, where, error))
        return _Entry(revision, error=f"{where} has no variable {variable!r} (graph {name!r}).")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        _log.warning("the graph %r could not be imported", name, exc_info=error)
        return _Entry(revision, error=_raised(name, where, error))
    return _Entry(revision, target=found)


def _raised(name: str, where: str, error: BaseException) -> str:
    return f"Importing {where} for the graph {name!r} raised {type(error).__name__}: {error}"[:1000]


def _module(file: Path, where: str) -> Any:
    if not where.endswith(".py"):
        if not all(part.isidentifier() for part in where.split(".")):
            raise _NoPython
        return importlib.import_module(where)
    if not file.is_file():
        raise _NotThere
    name = f"cogni_graphs_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Known before it runs: pydantic and dataclasses look their modules up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


async def _compiled(graph_id: str, target: Any) -> AnyGraph:
    made = target
    if not isinstance(target, Pregel | StateGraph) and callable(target):
        made = await _made(graph_id, target)
    if isinstance(made, StateGraph):
        made = made.compile()
    if not isinstance(made, Pregel):
        raise CatalogueError(
            f"The graph {graph_id!r} is of the type {type(made).__name__}; it must be a "
            "StateGraph, a compiled graph, or a function that returns one."
        )
    return made


async def _made(graph_id: str, factory: Any) -> Any:
    """Call a graph's factory, which may take the config, and may be async."""
    arguments: list[Any] = [{"configurable": {}}] if inspect.signature(factory).parameters else []
    try:
        if inspect.iscoroutinefunction(factory):
            return await factory(*arguments)
        return await asyncio.to_thread(factory, *arguments)
    except Exception as error:
        raise CatalogueError(
            f"The factory of the graph {graph_id!r} raised {type(error).__name__}: {error}"[:1000]
        ) from error
