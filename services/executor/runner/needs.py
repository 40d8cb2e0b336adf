"""What credential an invocation needs: whose, and cut down to what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogni.graph.guarding import ToolDenied
from cogni.graph.policy import ToolPolicy

#: As many as Connections takes in one request.
RESOURCE_LENGTH_MAX = 255


@dataclass(frozen=True)
class Need:
    """The providers that will do, the preferred first, and the least that suffices."""

    providers: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " or ".join(repr(each) for each in self.providers)


def need_of(policy: ToolPolicy, arguments: Mapping[str, Any]) -> Need | None:
    """What an invocation with these arguments needs; None when it needs no credential.

    Raises ToolDenied when the argument that should name its resource does not: a credential for
    everything would be the alternative.
    """
    if not policy.providers:
        return None
    if policy.resource is None:
        return Need(policy.providers, policy.scopes)
    named = arguments.get(policy.resource)
    if not isinstance(named, str) or not 0 < len(named) <= RESOURCE_LENGTH_MAX:
        raise ToolDenied(f"No credential: {policy.resource!r} must name what it is for.")
    return Need(policy.providers, policy.scopes, (named,))
