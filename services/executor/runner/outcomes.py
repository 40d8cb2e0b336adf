"""Keeps what a tool returned, for a repeated execution that gets it instead."""

from typing import Any

from langchain_core.messages import ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from cogni.graph.guarding import ToolRequest

#: An outcome that is larger is not kept, nor is one that is no data: a repeated execution then
#: asks a person.
RESULT_BYTES_MAX = 4 * 1024 * 1024


class Outcomes:
    """Turns outcomes into bytes and back."""

    def __init__(self) -> None:
        self._serde = JsonPlusSerializer()

    def stored(self, outcome: Any) -> bytes | None:
        """The outcome as it is kept; None when it is too large, or no data."""
        try:
            kind, data = self._serde.dumps_typed(outcome)
        except Exception:
            # A tool may return any object, whose own code runs here. The effect has happened, and
            # that it did must be known whatever the object is.
            return None
        stored = kind.encode() + b"\0" + data
        return stored if len(stored) <= RESULT_BYTES_MAX else None

    def said(self, output: Any) -> bytes:
        """What a person says that the tool returned; only that it did, when it is too large."""
        kept = self.stored(output) or self.stored("done")
        assert kept is not None, "a word is small"
        return kept

    def reused(self, request: ToolRequest, result: bytes) -> Any:
        """A kept outcome, as the answer to this request."""
        kind, _, data = result.partition(b"\0")
        outcome = self._serde.loads_typed((kind.decode(), data))
        if isinstance(outcome, ToolMessage) and request.tool_call_id:
            return outcome.model_copy(update={"tool_call_id": request.tool_call_id})
        if request.tool_call_id and not isinstance(outcome, ToolMessage):
            # A person's verdict on what a model asked for.
            return ToolMessage(
                content=str(outcome), name=request.tool.name, tool_call_id=request.tool_call_id
            )
        return outcome
