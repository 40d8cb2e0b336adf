"""Connects through a provider's own page: begins authorizations, and completes each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from cogni.egress_rules import EgressRules
from services.connections.access_log import Action, Decision, Entry
from services.connections.authorization import (
    Authorization,
    BeginWanted,
    Proof,
    authorization_invalid,
    binding_of,
    state_hash,
)
from services.connections.callers import entry_by
from services.connections.connection import (
    Connection,
    check_may_change,
    check_not_revoked,
)
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import ProviderError
from services.connections.providers.http import Http
from services.connections.providers.provider import (
    AuthorizationAsk,
    AuthorizationGrant,
    Material,
    OAuthFlow,
    Provider,
    ProviderSettings,
)
from services.connections.secret import AuthKind, Secret
from services.connections.store import (
    access_log,
    authorizations,
    connections,
    credentials,
)
from services.connections.store.authorizations import NewAuthorization
from services.connections.use_cases.authorized import Authorized, Brought
from services.connections.use_cases.sealed import Vault
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import (
    ErrorKind,
    ServiceError,
    Violation,
    invalid,
    limit,
    not_found,
    reused_request_id,
)
from services.runtime.ids import new_id


@dataclass(frozen=True, slots=True)
class Redirects:
    """Where the operator lets people be sent: exact URIs; the server's callback comes first."""

    callback: str = ""
    redirect_uris: frozenset[str] = frozenset()
    return_uris: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Begun:
    """An authorization and the page to send the person to."""

    authorization_id: str
    url: str = field(repr=False)
    expire_time: datetime


class Authorizations:
    """BeginAuthorization and CompleteAuthorization."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: Catalogue,
        http: Http,
        egress_rules: EgressRules,
        redirects: Redirects,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._http = http
        self._egress_rules = egress_rules
        self._redirects = redirects
        self._authorized = Authorized(database, vault)

    async def begin(self, caller: Caller, wanted: BeginWanted) -> Begun:
        """Store an authorization, or find the one this request made."""
        tenant_id = caller.tenant_id
        redirect_uri = self._checked_uris(wanted)
        provider_name, settings = await self._target(caller, wanted)
        provider = self._catalogue.get(provider_name)
        flow = _flow(provider)
        authorization_id = new_id()
        proof = Proof.fresh(wanted.new.client_secret if wanted.new else "")
        binding = binding_of(tenant_id, authorization_id, provider_name)
        plan = wanted.new.to_json() if wanted.new else {}
        new = NewAuthorization(
            authorization_id=authorization_id,
            request_id=wanted.request_id,
            request_hash=wanted.hash(),
            subject=caller.owner,
            provider=provider_name,
            connection_id=wanted.connection_id or None,
            state_hash=state_hash(proof.state),
            issuer=flow.issuer(settings),
            redirect_uri=redirect_uri,
            return_uri=wanted.return_uri,
            scopes=wanted.scopes,
            plan=plan,
            envelope=await self._vault.seal_proof(binding, proof),
        )
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            if await authorizations.count_open(tx, tenant_id) >= (
                authorizations.OPEN_PER_TENANT_MAX
            ):
                raise limit(
                    f"tenant:{tenant_id}",
                    f"at most {authorizations.OPEN_PER_TENANT_MAX} authorizations may be open",
                )
            if await authorizations.begin(tx, tenant_id, new):
                entry = _entry(caller, Action.BEGIN_AUTHORIZATION, provider_name)
                await access_log.append(
                    tx,
                    head,
                    replace(
                        entry,
                        connection_id=wanted.connection_id,
                        details={"authorization_id": authorization_id},
                    ),
                )
            stored = await authorizations.of_request(tx, tenant_id, wanted.request_id)
        if stored is None or stored.request_hash != wanted.hash():
            raise reused_request_id(wanted.request_id)
        proof = await self._vault.open_proof(stored)
        ask = AuthorizationAsk(
            stored.redirect_uri, stored.scopes, proof.state, proof.code_challenge
        )
        url = flow.authorization_url(settings, ask)
        return Begun(stored.authorization_id, url, stored.expire_time)

    async def complete(
        self, caller: Caller, state: str, issuer: str, *, code: str, error: str
    ) -> Connection:
        """Use the state up, exchange the code, and make or renew the connection."""
        tenant_id = caller.tenant_id
        async with self._database.tenant(tenant_id) as tx:
            stored = await authorizations.use(tx, tenant_id, caller.owner, state_hash(state))
        if stored is None:
            raise authorization_invalid()
        try:
            return await self._complete(caller, stored, issuer, code, error)
        except ServiceError as failure:
            entry = _entry(caller, Action.COMPLETE_AUTHORIZATION, stored.provider)
            entry = replace(
                entry,
                decision=Decision.FAILED,
                connection_id=stored.connection_id or "",
                reason=failure.reason,
                details={"authorization_id": stored.authorization_id},
            )
            async with self._database.tenant(tenant_id) as tx:
                await access_log.record(tx, tenant_id, entry)
            raise

    async def owner_of(self, state: str) -> tuple[str, str] | None:
        """Tenant and subject that a state belongs to, for the callback."""
        async with self._database.jobs() as tx:
            return await authorizations.tenant_and_subject(tx, state_hash(state))

    async def return_uri_of(self, tenant_id: str, state: str) -> str:
        """Where the person wants to be sent afterwards; "" for a plain page."""
        async with self._database.tenant(tenant_id) as tx:
            return await authorizations.return_uri(tx, tenant_id, state_hash(state))

    async def _complete(
        self, caller: Caller, stored: Authorization, issuer: str, code: str, error: str
    ) -> Connection:
        # RFC 9207: an answer of another server means that its code belongs there (mix-up). A server
        # that names nobody could be any: who configures an issuer says that it names itself.
        if stored.issuer and issuer != stored.issuer:
            raise authorization_invalid()
        if error:
            raise ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                "AUTHORIZATION_DENIED",
                "The authorization was refused at the provider.",
                metadata={"error": error if error.isascii() and error.isprintable() else ""},
            )
        proof = await self._vault.open_proof(stored)
        provider = self._catalogue.get(stored.provider)
        settings, secret, now = await self._material(stored, proof, provider)
        grant = AuthorizationGrant(stored.redirect_uri, code, proof.code_verifier)
        try:
            session = await _flow(provider).exchange(
                Material(settings, secret), grant, self._http, now
            )
        except ProviderError as failure:
            raise failure.to_service_error() from failure
        if not session.scopes:
            # RFC 6749 §5.1: an answer without scope grants what was asked for.
            session = replace(session, scopes=stored.scopes or _default_scopes(settings))
        return await self._authorized.keep(
            caller, Brought(stored, provider, settings, secret, session, now)
        )

    async def _material(
        self, stored: Authorization, proof: Proof, provider: Provider
    ) -> tuple[ProviderSettings, Secret | None, datetime]:
        tenant_id = stored.tenant_id
        connection_id = stored.connection_id
        async with self._database.tenant(tenant_id) as tx:
            has = await credentials.get(tx, tenant_id, connection_id or stored.authorization_id)
            if connection_id is None:
                values: Mapping[str, Any] = stored.plan["settings"]
            else:
                values = (await _found(tx, tenant_id, connection_id)).settings
        settings = provider.settings.model_validate(values)
        if connection_id is not None:
            return settings, (await self._vault.material(settings, has)).secret, has.now
        client_secret = proof.client_secret
        given = Secret(AuthKind.OAUTH2, {"client_secret": client_secret})
        return settings, given if client_secret else None, has.now

    async def _target(self, caller: Caller, wanted: BeginWanted) -> tuple[str, ProviderSettings]:
        if wanted.new is None:
            async with self._database.tenant(caller.tenant_id) as tx:
                found = await _found(tx, caller.tenant_id, wanted.connection_id)
            check_may_change(found, caller.owner, caller.scopes)
            check_not_revoked(found)
            provider = self._catalogue.get(found.provider)
            return found.provider, provider.settings.model_validate(found.settings)
        provider = self._catalogue.get(wanted.new.provider)
        settings = provider.parse_settings(wanted.new.settings)
        if not isinstance(settings, ProviderSettings):
            raise _invalid_new(settings)
        violations = provider.url_violations(settings, self._egress_rules)
        if violations:
            raise _invalid_new(violations)
        return wanted.new.provider, settings

    def _checked_uris(self, wanted: BeginWanted) -> str:
        allowed = self._redirects
        violations = []
        redirect_uri = wanted.redirect_uri or allowed.callback
        if not redirect_uri:
            violations.append(Violation("redirect_uri", "is required: this server has no callback"))
        elif redirect_uri not in {allowed.callback, *allowed.redirect_uris}:
            violations.append(Violation("redirect_uri", "is not on the operator's list"))
        if wanted.return_uri and wanted.return_uri not in allowed.return_uris:
            violations.append(Violation("return_uri", "is not on the operator's list"))
        if violations:
            raise invalid(*violations)
        return redirect_uri


def _flow(provider: Provider) -> OAuthFlow:
    provider.check_configured()
    if provider.oauth is None:
        raise invalid(
            Violation("target", f"{provider.id} is not authorised this way: CreateConnection")
        )
    return provider.oauth


def _invalid_new(violations: list[Violation]) -> ServiceError:
    return invalid(*(replace(each, field=f"new_connection.{each.field}") for each in violations))


def _default_scopes(settings: ProviderSettings) -> tuple[str, ...]:
    scopes: tuple[str, ...] = getattr(settings, "scopes", ())
    return scopes


def _entry(caller: Caller, action: Action, provider: str) -> Entry:
    return replace(entry_by(caller, action, Decision.ALLOWED), provider=provider)


async def _found(
    tx: AsyncConnection, tenant_id: str, connection_id: str, *, lock: bool = False
) -> Connection:
    found = await connections.get(tx, tenant_id, connection_id, lock=lock)
    if found is None:
        raise not_found("connection", connection_id)
    return found
