"""LangChain messages to and from the OpenAI form that LiteLLM speaks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    InvalidToolCall,
    ToolCall,
    convert_to_openai_messages,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from cogni.graph.provider import usage_of


def to_request_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation as OpenAI message dicts."""
    converted = convert_to_openai_messages(list(messages))
    return converted if isinstance(converted, list) else [converted]


def to_generation(response: Any) -> ChatGeneration:
    """A whole response as one message, with usage and tool calls."""
    choice = response.choices[0]
    tool_calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for raw in choice.message.tool_calls or []:
        _parse_into(tool_calls, invalid, raw.model_dump())
    message = AIMessage(
        content=choice.message.content or "",
        tool_calls=tool_calls,
        invalid_tool_calls=invalid,
        usage_metadata=_usage_metadata(getattr(response, "usage", None)),
        additional_kwargs=_extras(choice.message),
        response_metadata=_response_metadata(response, choice.finish_reason),
    )
    return ChatGeneration(message=message)


def to_chunk(part: Any) -> ChatGenerationChunk | None:
    """One streamed part as a message chunk; None for a part that says nothing."""
    usage = _usage_metadata(getattr(part, "usage", None))
    choice = part.choices[0] if part.choices else None
    delta = getattr(choice, "delta", None)
    finish = getattr(choice, "finish_reason", None)
    content = getattr(delta, "content", None) or ""
    calls = [_call_chunk(raw) for raw in getattr(delta, "tool_calls", None) or []]
    extras = _extras(delta)
    if not (content or calls or extras or usage or finish):
        return None
    message = AIMessageChunk(
        content=content,
        tool_call_chunks=calls,
        additional_kwargs=extras,
        usage_metadata=usage,
        response_metadata=_response_metadata(part, finish) if finish else {},
    )
    return ChatGenerationChunk(message=message)


def message_to_chunk(message: AIMessage) -> ChatGenerationChunk:
    """A whole message as a stream of one chunk."""
    fields = message.model_dump(exclude={"type"})
    return ChatGenerationChunk(message=AIMessageChunk(**fields))


def _parse_into(calls: list[ToolCall], invalid: list[InvalidToolCall], raw: dict[str, Any]) -> None:
    try:
        if (parsed := parse_tool_call(raw, return_id=True)) is not None:
            calls.append(ToolCall(name=parsed["name"], args=parsed["args"], id=parsed["id"]))
    except OutputParserException as failure:
        # The model sees its own malformed call again and can correct it.
        invalid.append(make_invalid_tool_call(raw, str(failure)))


def _call_chunk(raw: Any) -> ToolCallChunk:
    function = getattr(raw, "function", None)
    return ToolCallChunk(
        name=getattr(function, "name", None),
        args=getattr(function, "arguments", None),
        id=getattr(raw, "id", None),
        index=getattr(raw, "index", 0),
        type="tool_call_chunk",
    )


def _extras(said: Any) -> dict[str, Any]:
    reasoning = getattr(said, "reasoning_content", None)
    return {"reasoning_content": reasoning} if reasoning else {}


def _response_metadata(response: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"model_name": response.model or "", "finish_reason": finish_reason or ""}


def _usage_metadata(reported: Any) -> UsageMetadata | None:
    if reported is None:
        return None
    usage = usage_of(reported)
    return UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        input_token_details=InputTokenDetails(
            cache_read=usage.cached_input_tokens, cache_creation=usage.cache_write_tokens
        ),
        output_token_details=OutputTokenDetails(reasoning=usage.reasoning_tokens),
    )
