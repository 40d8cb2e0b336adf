"""What a tool does to the world, as its author declares it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, overload

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as langchain_tool

_KEY = "cogni_policy"


class Effect(StrEnum):
    """Whether invoking a tool changes anything outside the run."""

    #: It only computes or reads: invoking it again does no harm.
    NONE = "none"

    #: It acts in the world. After a crash, or an exception it raised, it is not repeated blindly:
    #: a person is asked whether it happened. Raise ToolException for what certainly did not; an
    #: exception with `maybe_done = False` says so too.
    OUTWARD = "outward"


@dataclass(frozen=True)
class ToolPolicy:
    """How the guard treats a tool. The default is that of a tool that declares nothing."""

    effects: Effect = Effect.OUTWARD

    #: Repeating it with the same invocation_id() has no second effect.
    idempotent: bool = False

    #: The provider whose credential it needs, for example "bluesky"; or several it can use, the
    #: preferred first.
    connection: str | tuple[str, ...] | None = None

    #: What the credential is cut down to, where the provider can, for example ("issues:write",).
    scopes: tuple[str, ...] = ()

    #: The argument that names the one resource the credential is cut down to, for example a
    #: repository. Without that argument the tool gets no credential.
    resource: str | None = None

    #: What it returns comes from somebody nobody here vouches for, and is marked so: in its event
    #: and in the message for a model. Code that calls the tool itself gets the plain value.
    untrusted: bool = False

    #: Arguments that events show as "[redacted]". The tool gets their values, and so does whatever
    #: the graph keeps: its state, its checkpoints, the message that asked for the tool.
    redact_arguments: tuple[str, ...] = ()

    #: Events show what it returns, and how it fails, as "[redacted]"; the graph gets it.
    redact_result: bool = False

    @property
    def providers(self) -> tuple[str, ...]:
        """Every provider whose credential it can use, the preferred first."""
        if self.connection is None or isinstance(self.connection, str):
            return () if self.connection is None else (self.connection,)
        return self.connection


@overload
def tool(function: Callable[..., Any]) -> BaseTool: ...


@overload
def tool(
    function: None = None,
    *,
    effects: Effect | str = ...,
    idempotent: bool = ...,
    connection: str | tuple[str, ...] | None = ...,
    scopes: Sequence[str] = ...,
    resource: str | None = ...,
    untrusted: bool = ...,
    redact_arguments: Sequence[str] = ...,
    redact_result: bool = ...,
    **langchain_options: Any,
) -> Callable[[Callable[..., Any]], BaseTool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    *,
    effects: Effect | str = Effect.OUTWARD,
    idempotent: bool = False,
    connection: str | tuple[str, ...] | None = None,
    scopes: Sequence[str] = (),
    resource: str | None = None,
    untrusted: bool = False,
    redact_arguments: Sequence[str] = (),
    redact_result: bool = False,
    **langchain_options: Any,
) -> BaseTool | Callable[[Callable[..., Any]], BaseTool]:
    """LangChain's `@tool` with a declared policy; other options go to LangChain.

    Raises ValueError for an unknown effect.
    """
    policy = ToolPolicy(
        Effect(effects),
        idempotent,
        connection,
        tuple(scopes),
        resource,
        untrusted,
        tuple(redact_arguments),
        redact_result,
    )

    def declare(target: Callable[..., Any]) -> BaseTool:
        return with_policy(langchain_tool(**langchain_options)(target), policy)

    return declare if function is None else declare(function)


def with_policy(declared: BaseTool, policy: ToolPolicy) -> BaseTool:
    """Declare the policy of a tool that came from elsewhere, and return the same tool."""
    declared.metadata = {
        **(declared.metadata or {}),
        _KEY: {
            "effects": policy.effects.value,
            "idempotent": policy.idempotent,
            "connections": list(policy.providers),
            "scopes": list(policy.scopes),
            "resource": policy.resource,
            "untrusted": policy.untrusted,
            "redact_arguments": list(policy.redact_arguments),
            "redact_result": policy.redact_result,
        },
    }
    return declared


def policy_of(declared: BaseTool) -> ToolPolicy:
    """The tool's declared policy; outward and not idempotent when it declares none."""
    stored = (declared.metadata or {}).get(_KEY)
    if stored is None:
        return ToolPolicy()
    names = tuple(stored["connections"])
    return ToolPolicy(
        Effect(stored["effects"]),
        stored["idempotent"],
        names if len(names) > 1 else next(iter(names), None),
        tuple(stored["scopes"]),
        stored["resource"],
        stored["untrusted"],
        tuple(stored["redact_arguments"]),
        stored["redact_result"],
    )
