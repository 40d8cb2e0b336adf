"""Takes out of events what a tool declares not to be shown. Pure."""

from collections.abc import Mapping, Sequence

from cogni.graph.policy import ToolPolicy
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
