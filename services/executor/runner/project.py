"""What a langgraph.json says. Reads it without LangGraph, so that a mistake is told at once."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.executor.graphs import GRAPH_ID, GRAPH_ID_LENGTH_MAX

_GRAPHS_MAX = 1000


class ProjectError(Exception):
    """Raised when a langgraph.json cannot be used at all; the text says what to do."""


@dataclass(frozen=True)
class Project:
    """The parts of the file that a runner uses. `graphs` maps ids to 'path.py:variable'."""

    graphs: Mapping[str, str]
    dependencies: tuple[str, ...] = (".",)
    #: The name of a file, or the variables themselves.
    env: Any = None


def read_project(path: Path) -> Project:
    """Read the file. Raises ProjectError."""
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ProjectError(f"{path} is too deeply nested to be a langgraph.json.") from None
    except OSError as error:
        raise ProjectError(
            f"{path} cannot be read ({error.strerror}): name a langgraph.json in COGNI_GRAPHS_FILE."
        ) from None
    except ValueError as error:
        raise ProjectError(f"{path} is not JSON: {error}.") from None
    graphs = said.get("graphs") if isinstance(said, dict) else None
    if not isinstance(graphs, dict) or not graphs or len(graphs) > _GRAPHS_MAX:
        raise ProjectError(
            f'{path} names no graphs: it needs "graphs", for example '
            '{"graphs": {"agent": "./agent.py:graph"}}.'
        )
    targets = {name: _target(target) for name, target in graphs.items()}
    for name, target in targets.items():
        # A graph of another name could never be run.
        if len(name) > GRAPH_ID_LENGTH_MAX or not re.fullmatch(GRAPH_ID, name):
            raise ProjectError(
                f"{path}: {name[:GRAPH_ID_LENGTH_MAX]!r} cannot be a graph's name: letters, "
                f"digits, '_', '.' and '-' can, at most {GRAPH_ID_LENGTH_MAX}, the first a letter "
                "or digit."
            )
        if ":" not in target or not target.isprintable():
            raise ProjectError(
                f"{path}: the graph {name!r} must be given as 'path.py:variable', not {target!r}."
            )
    return Project(targets, _dependencies(said, path), _env(said, path))


def _target(target: Any) -> str:
    """LangGraph allows {"path": "…", "description": "…"} as well as the text alone."""
    return str(target.get("path", "")) if isinstance(target, dict) else str(target)


def _dependencies(said: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    named = said.get("dependencies", ["."])
    if not isinstance(named, list):
        raise ProjectError(f'{path}: "dependencies" must be a list of folders, such as ["."].')
    return tuple(str(each) for each in named)


def _env(said: Mapping[str, Any], path: Path) -> Any:
    env = said.get("env")
    if isinstance(env, str) and "\0" not in env:
        if env and not (path.parent / env).is_file():
            raise ProjectError(f"{path} names the env file {env!r}, which is not there.")
        return env or None
    if env is None or isinstance(env, dict):
        return env
    raise ProjectError(f'{path}: "env" must be the name of a file, or an object of variables.')
