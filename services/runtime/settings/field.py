"""How a setting is declared: its scope, its meaning, and the name of its variable."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, SecretStr
from pydantic.fields import FieldInfo

PREFIX = "COGNI_"


def own(default: Any, description: str, *, file_only: bool = False, **limits: Any) -> Any:
    """A setting of one service: field `listen` of `ledger` is COGNI_LEDGER_LISTEN.

    `...` as the default makes it required; `limits` are pydantic's (ge, le, pattern, …).
    """
    return _field(default, description, "own", file_only, limits)


def shared(default: Any, description: str, *, file_only: bool = False, **limits: Any) -> Any:
    """A setting that means the same to every process: field `log_level` is COGNI_LOG_LEVEL.

    A SecretStr setting is also read from the file named by its variable with `_FILE` appended;
    with `file_only` that is the only way, so that the secret is in no process listing.
    """
    return _field(default, description, "shared", file_only, limits)


def _field(
    default: Any, description: str, scope: str, file_only: bool, limits: dict[str, Any]
) -> Any:
    extra: dict[str, Any] = {"scope": scope, "file_only": file_only}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def is_own(field: FieldInfo) -> bool:
    """Whether the setting belongs to one service rather than to every process."""
    return _extra(field).get("scope") == "own"


def is_file_only(field: FieldInfo) -> bool:
    """Whether the setting is a secret that may only come from a file."""
    return bool(_extra(field).get("file_only"))


def is_secret(field: FieldInfo) -> bool:
    """Whether the value must never be shown."""
    return "SecretStr" in str(field.annotation) or field.annotation is SecretStr


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def variable(name: str, field: FieldInfo, service: str) -> str:
    """The environment variable of a setting, without `_FILE`."""
    scope = f"{service.upper()}_" if is_own(field) else ""
    return f"{PREFIX}{scope}{name.upper()}"


def variables_of(name: str, field: FieldInfo, service: str) -> tuple[str, ...]:
    """Every variable that sets this field, the plainest first."""
    plain = variable(name, field, service)
    if is_file_only(field):
        return (f"{plain}_FILE",)
    if is_secret(field):
        return (plain, f"{plain}_FILE")
    return (plain,)


def variables(cls: type[BaseModel], service: str) -> frozenset[str]:
    """Every variable that a settings class reads."""
    return frozenset(
        name
        for field_name, field in cls.model_fields.items()
        for name in variables_of(field_name, field, service)
    )
