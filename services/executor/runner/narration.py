"""Tells what LangGraph streams as events of the run."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langgraph.types import Interrupt, StreamMode

from cogni.executor.v1.run_event_pb2 import (
    CustomEvent,
    MessageDelta,
    NodeFinished,
    NodeStarted,
    StateUpdated,
    ToolCallDelta,
)
from cogni.executor.v1.run_pb2 import RunError as RunErrorMessage
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.events import Draft
from services.executor.runner.redacting import Redactions
from services.executor.runner.rendering import json_of, text_of, value_of
from services.executor.runner.scrub import Scrubber

#: Longer texts of a message become several deltas: readers' messages have a largest size. In
#: characters, of which each may take four bytes.
_PIECE_CHARACTERS_MAX = 64 * 1024

#: What is asked of LangGraph. `tasks` carries inputs and results too: only names leave here.
MODES: tuple[StreamMode, ...] = ("tasks", "updates", "messages", "custom", "values")


class Narrator:
    """Turns the parts of one attempt's stream into drafts, and remembers how it ended."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        #: What the graph's tools declare not to be shown; set before the graph begins.
        self.redactions = Redactions()
        self._hidden: set[tuple[str, int]] = set()
        #: The newest whole state of the outermost graph; None before there is one.
        self.output: Any = None
        #: The questions that the stream ended with.
        self.interrupts: dict[str, tuple[str, Interrupt]] = {}
        #: Tasks of the outermost graph that began and have not ended.
        self.at_work: set[str] = set()
        #: The node that failed last, for the run's error.
        self.failed_node = ""
        #: The step that is under way, from 1.
        self.step = 1

    def stepped(self, step: int) -> None:
        """Note that a step is durable: what begins now belongs to the next."""
        self.step = step + 1

    def drafts(self, namespace: tuple[str, ...], mode: str, part: Any) -> list[Draft]:
        """Return the events that one part of the stream stands for; often none."""
        path = [each.partition(":")[0] for each in namespace]
        match mode:
            case "values":
                # What a function of LangGraph's functional API returns may be anything.
                asks = isinstance(part, dict) and "__interrupt__" in part
                if not namespace and not asks:
                    self.output = part
                return []
            case "tasks":
                return self._task(path, part)
            case "updates":
                return self._updates(path, part)
            case "messages":
                return self._message(path, *part)
            case _:
                return [self._custom(part)]

    def _task(self, path: list[str], part: dict[str, Any]) -> list[Draft]:
        where = {"node": part["name"], "namespace": path, "task_id": part["id"]}
        if "triggers" in part:
            if not path:
                self.at_work.add(part["id"])
            return [Draft(NodeStarted(step=self.step, **where))]
        for each in part.get("interrupts") or ():
            self._note_interrupt(part["name"], each)
        if part.get("interrupts"):
            return []
        self.at_work.discard(part["id"])
        finished = NodeFinished(**where)
        if error := part.get("error"):
            self.failed_node = part["name"]
            finished.error.CopyFrom(self._error(part["name"], error))
        return [Draft(finished)]

    def _note_interrupt(self, node: str, interrupt: Any) -> None:
        if isinstance(interrupt, dict):
            interrupt = Interrupt(value=interrupt["value"], id=interrupt["id"])
        self.interrupts[interrupt.id] = (node, interrupt)

    def _updates(self, path: list[str], part: dict[str, Any]) -> list[Draft]:
        drafts = []
        for node, update in part.items():
            if node == "__interrupt__":
                for each in update:
                    self.interrupts.setdefault(each.id, ("", each))
                continue
            spelt = value_of(self.redactions.value(self._scrubber.value(json_of(update))))
            drafts.append(Draft(StateUpdated(node=node, namespace=path, update=spelt)))
        return drafts

    def _message(self, path: list[str], message: Any, metadata: dict[str, Any]) -> list[Draft]:
        if not isinstance(message, AIMessage):
            return []
        chunk = isinstance(message, AIMessageChunk)
        delta = MessageDelta(
            message_id=message.id or "",
            node=str(metadata.get("langgraph_node", "")),
            namespace=path,
            text=self._scrubber.text(text_of(message.text)),
            reasoning=self._scrubber.text(
                text_of(str(message.additional_kwargs.get("reasoning_content", "")))
            ),
            tool_calls=self._shown(message.id or "", _call_deltas(message)),
            last=not chunk or getattr(message, "chunk_position", None) == "last",
        )
        if not (delta.text or delta.reasoning or delta.tool_calls or delta.last):
            return []
        return [Draft(each) for each in _pieces(delta)]

    def _shown(self, message_id: str, deltas: Sequence[ToolCallDelta]) -> Sequence[ToolCallDelta]:
        """Without the arguments that must not be shown; only a call's first piece has its name."""
        for each in deltas:
            place = (message_id, each.index)
            if each.tool and self.redactions.hides_arguments(each.tool):
                self._hidden.add(place)
            if place in self._hidden:
                each.ClearField("arguments_json")
        return deltas

    def _custom(self, part: Any) -> Draft:
        data = self._scrubber.value(json_of(part))
        name = data.get("name") if isinstance(data, dict) else None
        return Draft(CustomEvent(name=name if isinstance(name, str) else "", data=value_of(data)))

    def _error(self, node: str, error: Any) -> RunErrorMessage:
        return RunErrorMessage(
            reason=ErrorReason.ERROR_REASON_GRAPH_FAILED,
            message=self._scrubber.text(text_of(str(error)))[:2000],
            node=node,
            type=type(error).__name__ if isinstance(error, BaseException) else "",
        )


def _pieces(delta: MessageDelta) -> Iterator[MessageDelta]:
    """The delta, or several that say the same one after another."""
    if delta.ByteSize() <= _PIECE_CHARACTERS_MAX:
        yield delta
        return
    where: dict[str, Any] = {
        "message_id": delta.message_id,
        "node": delta.node,
        "namespace": delta.namespace,
    }
    for piece in _cut(delta.reasoning):
        yield MessageDelta(reasoning=piece, **where)
    for piece in _cut(delta.text):
        yield MessageDelta(text=piece, **where)
    for call in delta.tool_calls:
        names = {"tool_call_id": call.tool_call_id, "tool": call.tool}
        for piece in _cut(call.arguments_json) or [""]:
            part = ToolCallDelta(index=call.index, arguments_json=piece, **names)
            yield MessageDelta(tool_calls=[part], **where)
            # Only a call's first piece has its name.
            names = {}
    if delta.last:
        yield MessageDelta(last=True, **where)


def _cut(text: str) -> list[str]:
    size = _PIECE_CHARACTERS_MAX
    return [text[start : start + size] for start in range(0, len(text), size)]


def _call_deltas(message: AIMessage) -> Sequence[ToolCallDelta]:
    if isinstance(message, AIMessageChunk):
        return [
            ToolCallDelta(
                index=each["index"] if isinstance(each["index"], int) else 0,
                tool_call_id=each["id"] or "",
                tool=each["name"] or "",
                arguments_json=text_of(each["args"] or ""),
            )
            for each in message.tool_call_chunks
        ]
    return [
        ToolCallDelta(
            index=index,
            tool_call_id=each["id"] or "",
            tool=each["name"],
            arguments_json=_json_text(each["args"]),
        )
        for index, each in enumerate(message.tool_calls)
    ]


def _json_text(arguments: Any) -> str:
    return json.dumps(json_of(arguments), ensure_ascii=False)
