"""What a provider declares: how to connect, what to ask for, how sessions live, what to lease."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from cogni.egress_rules import EgressRules
from services.connections.credential import Credential
from services.connections.installation import Installation
from services.connections.providers.http import Http
from services.connections.secret import AuthKind, Secret, Session
from services.runtime.errors import ErrorKind, ServiceError, Violation


class RefreshPolicy(StrEnum):
    """What happens at the provider when a session is renewed; the contract's names."""

    NONE = "NONE"
    REMINT = "REMINT"
    REUSABLE = "REUSABLE"
    GRACE = "GRACE"
    STRICT = "STRICT"


#: A text whose spaces count, "Bearer " for example: settings lose those at their ends otherwise.
Verbatim = Annotated[str, StringConstraints(strip_whitespace=False)]


class ProviderSettings(BaseModel):
    """The non-secret settings of a connection; unknown ones are refused.

    `secret_bound` names those that decide where the secret goes: they change only together with
    the secret, or whoever may edit a connection could have its secret sent to their own server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)
    secret_bound: ClassVar[frozenset[str]] = frozenset()

    def urls(self) -> Mapping[str, str]:
        """The settings that are URLs this service will call, by name."""
        return {}


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope of a provider."""

    name: str
    description: str
    requested_by_default: bool = False


@dataclass(frozen=True, slots=True)
class LeaseWish:
    """What a tool asked of the credential; empty means all there is."""

    scopes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Material:
    """What a provider works with: the connection's settings, its secret and its session."""

    settings: Any
    secret: Secret | None
    session: Session | None = None


class Sessions(Protocol):
    """How a provider's sessions begin and go on; absent where the secret itself is leased."""

    async def begin(self, material: Material, http: Http, now: datetime) -> Session:
        """Make a session from the secret. Raises ProviderError."""
        ...

    async def renew(self, material: Material, http: Http, now: datetime) -> Session:
        """Make the next session from the present one. Raises ProviderError."""
        ...


class Probe(Protocol):
    """Tries out at the provider what would be leased; cheap, and changes nothing there."""

    async def __call__(self, material: Material, http: Http, now: datetime) -> str:
        """What was found, for people. Raises ProviderError."""
        ...


class Narrow(Protocol):
    """Makes a session that can do what a tool asked for and no more, where a provider can."""

    async def __call__(
        self, material: Material, wish: LeaseWish, http: Http, now: datetime
    ) -> Session:
        """Raises ProviderError."""
        ...


class Installations(Protocol):
    """Where an app of the provider is installed, where apps are."""

    settings: type[ProviderSettings]

    async def page(
        self, settings: Any, number: int, size: int, http: Http, now: datetime
    ) -> tuple[list[Installation], bool]:
        """A page, counted from 1, and whether there is another. Raises ProviderError."""
        ...


def _every_tenant(tenant_id: str, settings: Any) -> None:
    """What the operator configured is for every tenant."""


#: Which of the wanted scopes the granted ones do not cover: (granted, wanted) -> missing, sorted.
MissingScopes = Callable[[tuple[str, ...], tuple[str, ...]], list[str]]


def _set_difference(granted: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    return sorted(set(wanted) - set(granted))


class Lend(Protocol):
    """Makes the credential of a lease; pure."""

    def __call__(self, material: Material, wish: LeaseWish) -> Credential: ...


@dataclass(frozen=True, slots=True)
class SecretRule:
    """The fields that a secret of one kind has, each with its greatest length in characters."""

    required: Mapping[str, int]
    optional: Mapping[str, int] = field(default_factory=dict)


SECRET_RULES: Mapping[AuthKind, SecretRule] = {
    AuthKind.API_KEY: SecretRule({"key": 8192}),
    AuthKind.APP_PASSWORD: SecretRule({"identifier": 320, "password": 1024}),
    AuthKind.OAUTH2: SecretRule(
        {},
        {
            "access_token": 16384,
            "refresh_token": 16384,
            "expire_time": 40,
            "client_secret": 4096,
        },
    ),
}


class OAuthFlow(Protocol):
    """How a person authorises a connection at the provider's own page."""

    def authorization_url(self, settings: Any, ask: AuthorizationAsk) -> str:
        """The page to send the person to; pure."""
        ...

    def issuer(self, settings: Any) -> str:
        """Who must have answered (RFC 9207); "" when the provider does not say."""
        ...

    async def exchange(
        self, material: Material, grant: AuthorizationGrant, http: Http, now: datetime
    ) -> Session:
        """Exchange the code for the first session. Raises ProviderError."""
        ...


@dataclass(frozen=True, slots=True)
class AuthorizationAsk:
    """What an authorization URL carries."""

    redirect_uri: str
    scopes: tuple[str, ...]
    state: str = field(repr=False)
    code_challenge: str


@dataclass(frozen=True, slots=True)
class AuthorizationGrant:
    """What the provider sent back, and the proof that it was sent to us (PKCE)."""

    redirect_uri: str
    code: str = field(repr=False)
    code_verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Provider:
    """One kind of outside service. `lend` decides what a tool gets, never more than it needs.

    `sessions` is None where there is nothing to renew. `restarts` tells that a new session can be
    begun from the secret when the present one is refused. `renew_before` is how long before its
    end a session is renewed, `lease_before` how much of its life a lease needs at least.
    """

    id: str
    display_name: str
    description: str
    documentation_uri: str
    auth_kinds: tuple[AuthKind, ...]
    settings: type[ProviderSettings]
    lend: Lend
    scopes: tuple[Scope, ...] = ()
    refresh_policy: RefreshPolicy = RefreshPolicy.NONE
    sessions: Sessions | None = None
    restarts: bool = False
    probe: Probe | None = None
    oauth: OAuthFlow | None = None
    narrow: Narrow | None = None
    #: None where the provider does not tell what it has granted.
    missing_scopes: MissingScopes | None = _set_difference
    installations: Installations | None = None
    #: Raises ServiceError when the operator keeps what the settings name for other tenants.
    check_tenant: Callable[[str, Any], None] = _every_tenant
    renew_before: timedelta = timedelta(minutes=5)
    lease_before: timedelta = timedelta(seconds=30)
    credential_lifetime: timedelta | None = None
    supports_downscoping: bool = False
    configured: bool = True

    @property
    def settings_schema(self) -> dict[str, Any]:
        """JSON Schema of the settings."""
        return self.settings.model_json_schema()

    @property
    def renews_by_itself(self) -> bool:
        """Whether a session can be made anew at any time, from what the operator keeps."""
        return self.refresh_policy is RefreshPolicy.REMINT

    def check_configured(self) -> None:
        """Raise PROVIDER_NOT_CONFIGURED while the operator has not given what it needs."""
        if not self.configured:
            raise ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                "PROVIDER_NOT_CONFIGURED",
                f"The operator has not configured {self.display_name}: it needs an OAuth client "
                "or an app's private key.",
                metadata={"provider": self.id},
            )

    def parse_settings(self, values: Mapping[str, Any]) -> ProviderSettings | list[Violation]:
        """The settings, or everything that is wrong with them."""
        try:
            return self.settings.model_validate(values)
        except ValidationError as error:
            return [
                Violation(
                    ".".join(("settings", *(str(part) for part in each["loc"]))),
                    self._complaint_about_setting(each["type"], each["msg"]),
                )
                for each in error.errors(include_input=False, include_url=False)
            ]

    def _complaint_about_setting(self, kind: str, message: str) -> str:
        """What pydantic found, in the words of the other violations."""
        if kind == "extra_forbidden":
            names = ", ".join(self.settings.model_fields) or "none"
            return f"is no setting of {self.id}; it has: {names}"
        known = _SETTING_COMPLAINTS.get(kind)
        return known or message.removeprefix("Value error, ").replace("String should", "must", 1)

    def secret_violations(self, secret: Secret | None) -> list[Violation]:
        """Everything that is wrong with a secret for this provider."""
        if secret is None:
            if AuthKind.NONE in self.auth_kinds or AuthKind.GITHUB_APP in self.auth_kinds:
                return []
            return [Violation("secret", f"is required; {self.id} takes {self._kinds()}")]
        if secret.kind not in self.auth_kinds:
            return [Violation("secret", f"is of the wrong kind; {self.id} takes {self._kinds()}")]
        path = f"secret.{_SECRET_FIELDS[secret.kind]}"
        rule = SECRET_RULES[secret.kind]
        violations = [
            Violation(f"{path}.{name}", complaint)
            for name, length in (*rule.required.items(), *rule.optional.items())
            if (value := secret.values.get(name, "")) or name in rule.required
            if (complaint := _complaint(value, length))
            or (complaint := _header_complaint(secret.kind, value))
        ]
        if secret.kind is AuthKind.OAUTH2 and not (
            secret.values.get("access_token") or secret.values.get("refresh_token")
        ):
            violations.append(
                Violation(path, "needs an access_token or a refresh_token; or BeginAuthorization")
            )
        return violations

    def kept_secret(self, secret: Secret | None) -> Secret | None:
        """What of a given secret is stored as such: imported tokens become the session instead,
        since a second copy of a rotating token would go stale."""
        if secret is None or secret.kind is not AuthKind.OAUTH2:
            return secret
        client_secret = secret.values.get("client_secret", "")
        if not client_secret:
            return None
        return replace(secret, values={"client_secret": client_secret})

    def policy(self, settings: ProviderSettings) -> RefreshPolicy:
        """The refresh policy of one connection; generic providers leave it to the settings."""
        chosen = getattr(settings, "refresh_policy", None)
        return RefreshPolicy(chosen) if chosen is not None else self.refresh_policy

    def url_violations(self, settings: ProviderSettings, rules: EgressRules) -> list[Violation]:
        """Settings whose URLs the egress rules forbid before any name is resolved."""
        return [
            Violation(f"settings.{name}", complaint)
            for name, url in settings.urls().items()
            if (complaint := rules.complaint_about_url(url))
        ]

    def _kinds(self) -> str:
        named = [_SECRET_FIELDS[kind] for kind in self.auth_kinds if kind in _SECRET_FIELDS]
        known = " or ".join(f"secret.{each}" for each in named) or "none"
        return f"{known}, or BeginAuthorization without one" if self.oauth else known


_SETTING_COMPLAINTS: Mapping[str, str] = {
    "missing": "is required",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "model_type": "must be an object",
}

_SECRET_FIELDS: Mapping[AuthKind, str] = {
    AuthKind.API_KEY: "api_key",
    AuthKind.APP_PASSWORD: "app_password",
    AuthKind.OAUTH2: "oauth_tokens",
}


def _header_complaint(kind: AuthKind, value: str) -> str | None:
    # Keys and tokens travel in headers; passwords and client secrets are encoded first.
    if kind in (AuthKind.API_KEY, AuthKind.OAUTH2) and not value.isascii():
        return "must be ASCII: no header could carry it"
    return None


def _complaint(value: str, length_max: int) -> str | None:
    if not value:
        return "is required"
    if len(value) > length_max:
        return f"must be at most {length_max} characters long"
    if not value.isprintable():
        return "must not contain control characters or line breaks"
    if value != value.strip():
        return "must not begin or end with a space"
    return None
