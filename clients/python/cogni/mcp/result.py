"""What an MCP tool answered, as the text that a model gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: More than a model can use, and less than a checkpoint minds.
TEXT_LENGTH_MAX = 64 * 1024
_BLOCKS_MAX = 200
_LABEL_LENGTH_MAX = 300


def text_of(result: Mapping[str, Any]) -> str:
    """The answer's texts; other kinds of content are told by a sentence each.

    Structured content is spelt as JSON when there is no text beside it, as servers should.
    """
    content = result.get("content")
    blocks = content if isinstance(content, list) else []
    parts = [_block(each) for each in blocks[:_BLOCKS_MAX]]
    if len(blocks) > _BLOCKS_MAX:
        parts.append(f"[{len(blocks) - _BLOCKS_MAX} more parts left out]")
    if not parts and result.get("structuredContent") is not None:
        parts.append(json.dumps(result["structuredContent"], ensure_ascii=False))
    return _cut("\n".join(parts))


def is_failure(result: Mapping[str, Any]) -> bool:
    """Whether the tool says that it failed."""
    return result.get("isError") is True


def _block(block: Any) -> str:
    if not isinstance(block, dict):
        return "[a part that is not what the protocol allows]"
    match block.get("type"):
        case "text" if isinstance(block.get("text"), str):
            return str(block["text"])
        case "image" | "audio" as kind:
            data = block.get("data")
            size = len(data) * 3 // 4 if isinstance(data, str) else 0
            return f"[{kind}, {_label(block.get('mimeType'))}, {size} bytes: not shown]"
        case "resource_link":
            return f"[link to a resource: {_label(block.get('uri'))}]"
        case "resource" if isinstance(resource := block.get("resource"), dict):
            if isinstance(resource.get("text"), str):
                return str(resource["text"])
            return f"[resource {_label(resource.get('uri'))}, not text: not shown]"
        case _:
            return "[a part of a kind that is not shown]"


def _label(value: Any) -> str:
    return value[:_LABEL_LENGTH_MAX] if isinstance(value, str) else "unnamed"


def _cut(text: str) -> str:
    if len(text) <= TEXT_LENGTH_MAX:
        return text
    return f"{text[:TEXT_LENGTH_MAX]}\n[cut off: {len(text) - TEXT_LENGTH_MAX} more characters]"
