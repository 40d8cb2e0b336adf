"""What the events show of messages that ask for a tool whose arguments are nobody's business."""

from __future__ import annotations

from langchain_core.messages import AIMessage

from cogni.graph.policy import ToolPolicy
from services.executor.runner.redacting import Redactions
from services.executor.runner.rendering import json_of

SECRET = "confided-3b1c"


def test_arguments_that_are_broken_json_are_redacted_with_the_error_that_quotes_them() -> None:
    redactions = Redactions({"confide": ToolPolicy(redact_arguments=("secret",))})
    said = f'{{"secret": "{SECRET}", '
    call = {"name": "confide", "args": said, "id": "call_1", "error": f"not JSON: {said}"}
    other = {"name": "post", "args": "{", "id": "call_2", "error": "not JSON: {"}
    message = AIMessage("", invalid_tool_calls=[call, other])

    shown = redactions.value({"messages": [json_of(message)]})

    assert SECRET not in str(shown)
    assert "'args': '{'" in str(shown), "what is no secret stays"
