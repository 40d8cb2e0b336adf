"""api_key: any HTTP API that takes one long-lived key in a header or in the query."""

from __future__ import annotations

import re
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from cogni.egress_rules import origin_of
from services.connections.credential import ApiKeyCredential
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
    Verbatim,
)
from services.connections.secret import AuthKind

# RFC 9110 §5.6.2: a token.
_HEADER_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"


class ApiKeySettings(ProviderSettings):
    """Where the key goes, and to which servers."""

    secret_bound: ClassVar[frozenset[str]] = frozenset({"allowed_origins"})

    allowed_origins: tuple[str, ...] = Field(
        min_length=1,
        max_length=16,
        description="The origins the key may be sent to, for example https://api.example.com.",
    )
    header_name: str = Field(
        default="",
        max_length=128,
        description="The header that carries the key; Authorization unless query_name is given.",
    )
    header_prefix: Verbatim | None = Field(
        default=None,
        max_length=64,
        pattern=r"^[\x20-\x7e]*$",
        description="What stands before the key; 'Bearer ' in Authorization, else nothing.",
    )
    query_name: str = Field(
        default="",
        max_length=128,
        pattern=r"^[A-Za-z0-9._~-]*$",
        description="The query parameter that carries the key, instead of a header.",
    )

    @field_validator("header_name")
    @classmethod
    def _is_a_header(cls, value: str) -> str:
        if value and re.fullmatch(_HEADER_NAME, value) is None:
            raise ValueError("is no header name")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            origin = origin_of(value)
            default = {"https": 443, "http": 80}[origin.scheme]
            port = "" if origin.port == default else f":{origin.port}"
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            if value.rstrip("/").lower() != f"{origin.scheme}://{host}{port}":
                raise ValueError(f"{value!r} must be scheme://host without a path")
        return tuple(value.rstrip("/").lower() for value in values)

    @model_validator(mode="after")
    def _goes_to_one_place(self) -> Self:
        if self.query_name and self.header_name:
            raise ValueError("give header_name or query_name, not both")
        return self

    def urls(self) -> dict[str, str]:
        """The origins, so that none is private unless the operator allows it."""
        return {f"allowed_origins.{i}": origin for i, origin in enumerate(self.allowed_origins)}


def _lend(material: Material, wish: LeaseWish) -> ApiKeyCredential:
    settings: ApiKeySettings = material.settings
    assert material.secret is not None
    header = "" if settings.query_name else settings.header_name or "Authorization"
    prefix = settings.header_prefix
    if prefix is None:
        prefix = "Bearer " if header.lower() == "authorization" else ""
    return ApiKeyCredential(
        key=material.secret.values["key"],
        header_name=header,
        header_prefix=prefix if header else "",
        query_name=settings.query_name,
        allowed_origins=settings.allowed_origins,
    )


API_KEY = Provider(
    id="api_key",
    display_name="API key",
    description=(
        "Any HTTP API that takes one long-lived key. Tools send it to the named origins only."
    ),
    documentation_uri="https://datatracker.ietf.org/doc/html/rfc6750",
    auth_kinds=(AuthKind.API_KEY,),
    settings=ApiKeySettings,
    lend=_lend,
)
