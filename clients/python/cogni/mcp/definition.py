"""A tool as an MCP server defines it: what is pinned of it, and what it is called here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What models and grants call a tool has at most so many characters: OpenAI's bound, the least.
TOOL_NAME_LENGTH_MAX = 64
#: The largest definition that can be granted, in bytes of its canonical JSON.
DEFINITION_BYTES_MAX = 32 * 1024
#: Deeper schemas cannot travel in a protobuf message.
SCHEMA_DEPTH_MAX = 24

_SERVER_NAME_LENGTH_MAX = 128
_UNSUITABLE = re.compile(r"[^A-Za-z0-9_-]")
_SCHEME = "mcp:"
_DIGEST_LENGTH = 8
#: What of a definition a model or a person acts on. The rest (icons, `_meta`) may change freely.
_PINNED = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")


class DefinitionError(ValueError):
    """Raised for a tool that cannot be used; the text says why and quotes nothing."""


@dataclass(frozen=True)
class ToolDefinition:
    """One tool of a server, as the server says it. None of it is to be trusted."""

    name: str
    title: str
    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    annotations: Mapping[str, Any]
    #: SHA-256, in hex, of the canonical JSON of what is pinned, as the server sent it.
    digest: str = field(repr=False)


def definition_of(sent: Any) -> ToolDefinition:
    """Read one element of a tools/list answer. Raises DefinitionError."""
    if not isinstance(sent, dict):
        raise DefinitionError("a tool is no object")
    name, schema = sent.get("name"), sent.get("inputSchema")
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _SERVER_NAME_LENGTH_MAX
        or not name.isprintable()
    ):
        raise DefinitionError("a tool has no usable name")
    if not isinstance(schema, dict):
        raise DefinitionError("a tool has no input schema")
    output, annotations = sent.get("outputSchema"), sent.get("annotations")
    pinned = {key: sent[key] for key in _PINNED if sent.get(key) is not None}
    if _deeper_than(pinned, SCHEMA_DEPTH_MAX):
        raise DefinitionError("a tool's schema is nested too deeply")
    try:
        spelt = _canonical(pinned)
    except ValueError:
        raise DefinitionError("a tool's definition holds what JSON does not allow") from None
    if len(spelt) > DEFINITION_BYTES_MAX:
        raise DefinitionError(f"a tool's definition is larger than {DEFINITION_BYTES_MAX} bytes")
    return ToolDefinition(
        name=name,
        title=_text(sent.get("title")),
        description=_text(sent.get("description")),
        input_schema=schema,
        output_schema=output if isinstance(output, dict) else None,
        annotations=annotations if isinstance(annotations, dict) else {},
        digest=hashlib.sha256(spelt).hexdigest(),
    )


def tool_name(provider: str, name: str) -> str:
    """What the tool `name` of the provider "mcp:<server>" is called in grants and by models.

    "<server>__<name>" where that is a name every model takes and belongs to no other pair;
    otherwise it is made so, and ends with a digest of the pair.
    """
    server = provider.removeprefix(_SCHEME)
    plain = f"{server}__{name}"
    spelt = _UNSUITABLE.sub("_", plain)
    # A server named "a__b" or "a_" could otherwise name its tools like those of another server.
    unambiguous = "__" not in server and not server.endswith("_")
    if spelt == plain and unambiguous and len(plain) <= TOOL_NAME_LENGTH_MAX:
        return plain
    digest = hashlib.sha256(f"{server}\0{name}".encode()).hexdigest()
    kept = spelt[: TOOL_NAME_LENGTH_MAX - _DIGEST_LENGTH - 1]
    return f"{kept}_{digest[:_DIGEST_LENGTH]}"


def may_be_of(tool: str, provider: str) -> bool:
    """Whether a tool of this name can be one of the provider's."""
    prefix = _UNSUITABLE.sub("_", f"{provider.removeprefix(_SCHEME)}__")
    return tool.startswith(prefix[: TOOL_NAME_LENGTH_MAX - _DIGEST_LENGTH - 1])


def is_mcp(provider: str) -> bool:
    """Whether the provider is an MCP server."""
    return provider.startswith(_SCHEME)


def _canonical(value: Any) -> bytes:
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    inner = value.values() if isinstance(value, dict) else value
    return any(_deeper_than(each, levels - 1) for each in inner)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
