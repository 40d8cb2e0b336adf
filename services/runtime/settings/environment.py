"""Reads a process's settings from its environment, and refuses what it cannot understand."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from services.runtime.errors import StartError
from services.runtime.settings.field import (
    PREFIX,
    is_file_only,
    is_own,
    is_secret,
    variable,
    variables,
)
from services.runtime.settings.groups import SHARED_GROUPS, ServiceSettings

#: A secret larger than this is a file named by mistake.
SECRET_BYTES_MAX = 64 * 1024
#: An unknown variable this like a known one is a misspelling, whatever its prefix. Names of two
#: services differ more: COGNI_EXECUTOR_ADDRESS and COGNI_LEDGER_ADDRESS are 0.86 alike.
MISSPELLING_RATIO = 0.9

Settings = TypeVar("Settings", bound=ServiceSettings)


class SettingsError(StartError):
    """Raised when the environment makes no valid settings; `problems` are whole sentences."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(cls: type[Settings], environ: Mapping[str, str] | None = None) -> Settings:
    """Reads `cls` from the environment (the process's own when None).

    Raises SettingsError with everything that is wrong at once: unknown variables, missing and
    malformed values, unreadable secret files, contradictions.
    """
    environ = os.environ if environ is None else environ
    source = EnvironmentSource(cls, environ)
    values = source()
    problems = [*unknown_variables(cls, environ), *source.problems]
    try:
        settings = cls(**values)
    except ValidationError as error:
        problems.extend(_sentences(cls, error, environ, source.failed))
    else:
        problems.extend(settings.contradictions())
        if not problems:
            return settings
    raise SettingsError(problems)


def load_or_exit(cls: type[Settings], environ: Mapping[str, str] | None = None) -> Settings:
    """`load` for the start of a process: says every problem on stderr and exits with code 2."""
    try:
        return load(cls, environ)
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        raise SystemExit(2) from None


class EnvironmentSource(PydanticBaseSettingsSource):
    """The variables of one settings class; secrets may come from the file their variable names."""

    def __init__(self, cls: type[ServiceSettings], environ: Mapping[str, str]) -> None:
        super().__init__(cls)
        self._service = cls.service
        self._environ = environ
        self.problems: list[str] = []
        #: Fields whose problem is already told.
        self.failed: set[str] = set()

    def __call__(self) -> dict[str, Any]:
        values = {}
        for name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, name)
            if value is not None:
                values[name] = value
        return values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The text of a variable, or None; a variable set to nothing counts as unset."""
        name = variable(field_name, field, self._service)
        plain = None if is_file_only(field) else self._environ.get(name) or None
        path = self._environ.get(f"{name}_FILE") or None
        if not is_secret(field) or path is None:
            return plain, field_name, False
        if plain is not None:
            self.problems.append(f"{name} and {name}_FILE are both set: set one.")
        return self._secret(field_name, f"{name}_FILE", Path(path)), field_name, False

    def _secret(self, field_name: str, name: str, path: Path) -> SecretStr | None:
        try:
            with path.open("rb") as file:
                text = file.read(SECRET_BYTES_MAX + 1).decode()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            self._fail(field_name, f"{name} names {str(path)!r}, which cannot be read: {why}.")
            return None
        if not text.strip() or len(text) > SECRET_BYTES_MAX:
            what = "is empty" if not text.strip() else f"is larger than {SECRET_BYTES_MAX} bytes"
            self._fail(field_name, f"{name} names {str(path)!r}, which {what}.")
            return None
        # Editors and `echo` end files with a newline that is no part of the secret.
        return SecretStr(text.rstrip("\r\n"))

    def _fail(self, field_name: str, problem: str) -> None:
        self.failed.add(field_name)
        self.problems.append(problem)


def unknown_variables(cls: type[ServiceSettings], environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that this process should know and does not.

    Its own prefix and the shared ones are checked strictly. Variables of other services are not
    ours to judge, except those that look like a misspelling of one of ours.
    """
    known = _known(cls)
    prefixes = (f"{PREFIX}{cls.service.upper()}_", *_shared_prefixes())
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known:
            continue
        strict = name.startswith(prefixes)
        cutoff = 0.6 if strict else MISSPELLING_RATIO
        nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
        if strict or nearest:
            hint = f" Did you mean {nearest[0]}?" if nearest else " Remove it."
            yield f"{name} is not a setting.{hint}"


def _known(cls: type[ServiceSettings]) -> frozenset[str]:
    names = variables(cls, cls.service)
    for group in SHARED_GROUPS:
        names |= variables(group, cls.service)
    for sibling in cls.siblings:
        names |= variables(sibling, sibling.service)
    return names


def _shared_prefixes() -> tuple[str, ...]:
    """COGNI_AUTH_, COGNI_TLS_, …: the first word of every shared setting."""
    words = {
        variable(name, field, "").removeprefix(PREFIX).partition("_")[0]
        for group in SHARED_GROUPS
        for name, field in group.model_fields.items()
        if not is_own(field)
    }
    return tuple(f"{PREFIX}{word}_" for word in sorted(words))


def _sentences(
    cls: type[ServiceSettings],
    error: ValidationError,
    environ: Mapping[str, str],
    told: set[str],
) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False):
        field_name = str(problem["loc"][0])
        if field_name in told:
            continue
        field = cls.model_fields[field_name]
        name = variable(field_name, field, cls.service)
        name = f"{name}_FILE" if is_file_only(field) else name
        if problem["type"] == "missing":
            yield f"{name} is required: {field.description}"
        elif problem["type"] == "string_pattern_mismatch" and not is_secret(field):
            # A regular expression is no sentence; what the setting means says what to write.
            yield f"{name} cannot be {environ.get(name, '')[:80]!r}: {field.description}"
        else:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
            shown = "" if is_secret(field) else f"; it is {environ.get(name, '')[:80]!r}"
            yield f"{name}: {message}{shown}."
