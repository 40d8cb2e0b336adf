"""Takes out of events what a tool declares not to be shown. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from langchain_core.tools import BaseTool

from cogni.graph.policy import ToolPolicy, policy_of
from services.runtime.jsonvalues import Json

REDACTED = "[redacted]"


def shown_arguments(policy: ToolPolicy, arguments: Mapping[str, Json]) -> dict[str, Json]:
    """The arguments with the declared ones redacted; "a.b" names a field within an argument."""
    shown = dict(arguments)
    for path in policy.redact_arguments:
        _redact(shown, path.split("."))
    return shown


def shown_result(policy: ToolPolicy, result: Json) -> Json:
    """The result, or the word in its place."""
    return REDACTED if policy.redact_result else result


def _redact(within: dict[str, Json], names: Sequence[str]) -> None:
    name, *rest = names
    if name not in within:
        return
    inner = within[name]
    if not rest or not isinstance(inner, dict):
        # A value that has not the shape its author expected is no less secret.
        within[name] = REDACTED
        return
    within[name] = copy = dict(inner)
    _redact(copy, rest)


@dataclass(frozen=True)
class Redactions:
    """What the tools of one graph declare not to be shown, for the messages that speak of them."""

    policies: Mapping[str, ToolPolicy] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Iterable[BaseTool]) -> "Redactions":
        """Those of the tools that redact anything."""
        declared = {each.name: policy_of(each) for each in tools}
        return cls(
            {
                name: policy
                for name, policy in declared.items()
                if policy.redact_arguments or policy.redact_result
            }
        )

    def hides_arguments(self, tool: str) -> bool:
        """Whether pieces of the tool's arguments must not be shown: a piece cannot be parted."""
        return tool in self.policies and bool(self.policies[tool].redact_arguments)

    def value(self, value: Json) -> Json:
        """The JSON with every message in it redacted that asks for such a tool, or answers."""
        if not self.policies:
            return value
        if isinstance(value, list):
            return [self.value(each) for each in value]
        if not isinstance(value, dict):
            return value
        if value.get("type") == "tool" and "tool_call_id" in value:
            return self._answer(value)
        if isinstance(value.get("tool_calls"), list):
            return self._request(value)
        return {name: self.value(each) for name, each in value.items()}

    def _answer(self, message: dict[str, Json]) -> Json:
        policy = self.policies.get(str(message.get("name")))
        if policy is None or not policy.redact_result:
            return message
        return {**message, "content": REDACTED, "artifact": None}

    def _request(self, message: dict[str, Json]) -> Json:
        calls = message["tool_calls"]
        assert isinstance(calls, list)
        # What a model asked for in broken JSON stands beside what can be read.
        invalid = _items(message.get("invalid_tool_calls"))
        named = [str(each.get("name")) for each in [*calls, *invalid] if isinstance(each, dict)]
        if not any(self.hides_arguments(name) for name in named):
            return message
        # Providers repeat the call in forms of their own: those go whole.
        shown = {**message, "tool_calls": [self._call(each) for each in calls]}
        shown |= {"additional_kwargs": {}, "response_metadata": {}}
        if invalid:
            shown["invalid_tool_calls"] = [self._invalid_call(each) for each in invalid]
        if "tool_call_chunks" in message:
            shown["tool_call_chunks"] = []
        if isinstance(message.get("content"), list):
            shown["content"] = [each for each in _items(message["content"]) if not _is_call(each)]
        return shown

    def _call(self, call: Json) -> Json:
        if not isinstance(call, dict) or not self.hides_arguments(str(call.get("name"))):
            return call
        arguments = call.get("args")
        policy = self.policies[str(call["name"])]
        if not isinstance(arguments, dict):
            return {**call, "args": REDACTED}
        return {**call, "args": shown_arguments(policy, arguments)}

    def _invalid_call(self, call: Json) -> Json:
        if not isinstance(call, dict) or not self.hides_arguments(str(call.get("name"))):
            return call
        # The error quotes the arguments.
        return {**call, "args": REDACTED, "error": REDACTED}


def _items(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _is_call(block: Json) -> bool:
    """Whether a content block may hold a call's arguments: text and reasoning do not."""
    return isinstance(block, dict) and block.get("type") not in ("text", "reasoning", "thinking")
