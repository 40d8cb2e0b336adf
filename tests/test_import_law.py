"""The import law: who may import whom, and what no file may be called."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("executor", "scheduler", "connections", "ledger")
BANNED_NAMES = {"utils", "common", "helpers", "base", "manager", "models", "misc"}

# Inside one service each layer may import only the layers before it.
RULES_MAY_NOT_IMPORT = ("sqlalchemy", "asyncpg", "grpc", "dramatiq", "httpx")
SQL_LIBRARIES = ("sqlalchemy", "asyncpg", "psycopg")
SLOW_IMPORTS = ("langgraph", "langchain_core", "litellm", "mcp")


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(p for p in found if "_pb2" not in p.name and ".venv" not in p.parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, relative imports made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                anchor = ".".join(package[: len(package) - node.level + 1])
                module = f"{anchor}.{node.module}" if node.module else anchor
            else:
                module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def top(path: Path) -> str:
    return path.relative_to(ROOT).parts[1]


def breaches(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return [
        name
        for name in imports(path)
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    others = tuple(f"services.{other}" for other in (*SERVICES, "standalone") if other != service)
    wrong = {
        relative(p): b for p in python_files(f"services/{service}") if (b := breaches(p, others))
    }
    assert wrong == {}


def test_the_runtime_knows_no_service() -> None:
    others = tuple(f"services.{other}" for other in (*SERVICES, "standalone"))
    others += tuple(f"cogni.{service}" for service in SERVICES)
    wrong = {relative(p): b for p in python_files("services/runtime") if (b := breaches(p, others))}
    assert wrong == {}


def test_the_client_imports_no_server_code() -> None:
    wrong = {
        relative(p): b
        for p in python_files("clients/python/cogni")
        if (b := breaches(p, ("services",)))
    }
    assert wrong == {}


def test_only_stores_tables_and_migrations_build_sql() -> None:
    def may_build_sql(path: Path) -> bool:
        parts = path.relative_to(ROOT / "services").parts
        return (
            parts[0] in ("runtime", "standalone")
            or path.stem.startswith(("store", "tables"))
            or any(part in ("store", "tables", "migrations") for part in parts[1:-1])
        )

    # AsyncConnection is the transaction that a use case opens and hands to the store.
    allowed = {"sqlalchemy.ext.asyncio", "sqlalchemy.ext.asyncio.AsyncConnection"}
    wrong = {
        relative(path): found
        for service in SERVICES
        for path in python_files(f"services/{service}")
        if not may_build_sql(path)
        and (found := [n for n in breaches(path, SQL_LIBRARIES) if n not in allowed])
    }
    assert wrong == {}


def test_only_runners_import_langgraph_and_litellm() -> None:
    def is_runner(path: Path) -> bool:
        return "runner" in path.parts or path.name == "worker.py"

    wrong = {
        relative(path): found
        for path in python_files("services")
        if not (top(path) == "executor" and is_runner(path))
        and (found := breaches(path, SLOW_IMPORTS))
    }
    assert wrong == {}


def test_only_graph_authors_packages_of_the_client_import_langgraph_and_litellm() -> None:
    wrong = {
        relative(path): found
        for path in python_files("clients/python/cogni")
        if "graph" not in path.parts and (found := breaches(path, SLOW_IMPORTS))
    }
    assert wrong == {}


def test_grpc_stays_at_the_edge_of_each_service() -> None:
    edge = {"server", "__main__", "settings", "access"}

    def at_edge(path: Path) -> bool:
        inner = path.relative_to(ROOT / "services").parts
        return path.stem in edge or any(
            part in ("adapters", "server", "runner") for part in inner[1:-1]
        )

    wrong = {
        relative(path): found
        for service in SERVICES
        for path in python_files(f"services/{service}")
        if not at_edge(path) and (found := breaches(path, ("grpc",)))
    }
    assert wrong == {}


def test_no_file_has_a_name_that_says_nothing() -> None:
    files = python_files("services", "clients/python/cogni", "bench", "tests")
    assert [relative(p) for p in files if p.stem in BANNED_NAMES] == []


def test_every_module_says_its_one_job_in_its_first_line() -> None:
    silent = [
        relative(path)
        for path in python_files("services", "clients/python/cogni", "bench")
        if path.read_text().strip() and ast.get_docstring(parsed(path)) is None
    ]
    assert silent == []
