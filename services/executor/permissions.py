"""The JSON in which a grant's tool permissions are kept."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from services.executor.constraints import (
    ArgumentConstraint,
    ArgumentRule,
    Equals,
    Glob,
    MaxLength,
    Range,
)
from services.executor.grants import McpTool, ToolPermission
from services.executor.graphs import ToolEffect
from services.runtime.jsonvalues import Json


def permissions_to_json(permissions: Sequence[ToolPermission]) -> list[Json]:
    """Return the permissions as JSON; `permissions_from_json` gives them back."""
    return [_permission_to_json(each) for each in permissions]


def permissions_from_json(stored: Sequence[dict[str, Any]]) -> tuple[ToolPermission, ...]:
    """Return the permissions that were stored."""
    return tuple(
        ToolPermission(
            tool=each["tool"],
            arguments=tuple(_constraint_from_json(item) for item in each["arguments"]),
            only_named_arguments=each["only_named_arguments"],
            max_invocations_per_run=each["max_invocations_per_run"],
            effect=ToolEffect(each["effect"]) if "effect" in each else None,
            reviewed_digest=each.get("reviewed_digest", ""),
            mcp_tool=McpTool(**each["mcp_tool"]) if "mcp_tool" in each else None,
        )
        for each in stored
    )


def _permission_to_json(permission: ToolPermission) -> Json:
    spelt: dict[str, Json] = {
        "tool": permission.tool,
        "arguments": [_constraint_to_json(each) for each in permission.arguments],
        "only_named_arguments": permission.only_named_arguments,
        "max_invocations_per_run": permission.max_invocations_per_run,
    }
    # Left out when unset: what this returns is part of a request's hash, and that of a request
    # which an earlier release has stored must stay the same.
    if permission.effect is not None:
        spelt["effect"] = permission.effect
    if permission.reviewed_digest:
        spelt["reviewed_digest"] = permission.reviewed_digest
    if permission.mcp_tool is not None:
        spelt["mcp_tool"] = dataclasses.asdict(permission.mcp_tool)
    return spelt


def _constraint_to_json(constraint: ArgumentConstraint) -> Json:
    return {
        "path": constraint.path,
        "required": constraint.required,
        "rule": _rule_to_json(constraint.rule),
    }


def _constraint_from_json(stored: dict[str, Any]) -> ArgumentConstraint:
    return ArgumentConstraint(stored["path"], stored["required"], _rule_from_json(stored["rule"]))


def _rule_to_json(rule: ArgumentRule | None) -> Json:
    match rule:
        case None:
            return None
        case Equals(values):
            return {"equals": list(values)}
        case Glob(pattern):
            return {"glob": pattern}
        case Range(least, most):
            return {"range": [least, most]}
        case MaxLength(length):
            return {"max_length": length}


def _rule_from_json(stored: dict[str, Any] | None) -> ArgumentRule | None:
    match stored:
        case None:
            return None
        case {"equals": values}:
            return Equals(tuple(values))
        case {"glob": pattern}:
            return Glob(pattern)
        case {"range": [least, most]}:
            return Range(least, most)
        case {"max_length": length}:
            return MaxLength(length)
        case _:
            # A rule of a newer release: without understanding it nothing may be allowed.
            raise ValueError(f"unknown argument rule {sorted(stored)}")
