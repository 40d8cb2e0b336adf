"""Says where an app of the operator's is installed, and what stands for it here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cogni.egress_rules import EgressRules
from services.connections.access_log import Action, Decision
from services.connections.callers import entry_by
from services.connections.installation import Installation, ListedInstallation
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import ProviderError
from services.connections.providers.http import Http
from services.connections.providers.provider import Installations as InstallationsOfProvider
from services.connections.providers.provider import Provider
from services.connections.store import access_log, connections, credentials
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, Violation, invalid
from services.runtime.ids import new_id
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class Installations:
    """ListInstallations."""

    def __init__(
        self, database: Database, catalogue: Catalogue, http: Http, egress_rules: EgressRules
    ) -> None:
        self._database = database
        self._catalogue = catalogue
        self._http = http
        self._egress_rules = egress_rules

    async def list(
        self,
        caller: Caller,
        provider_id: str,
        values: Mapping[str, Any],
        *,
        page_size: int,
        page_token: str,
    ) -> tuple[tuple[ListedInstallation, ...], str]:
        """A page as the provider answers now, and the token of the next; recorded either way."""
        provider = self._catalogue.get(provider_id)
        installations = _installations(provider)
        provider.check_configured()
        settings = self._checked(provider, installations, values)
        size = page_limit(page_size)
        bound_to = ["ListInstallations", caller.tenant_id, provider_id, repr(settings), size]
        key = decode_page_token(page_token, bound_to=bound_to)
        number = int(key[0]) if key else 1
        try:
            provider.check_tenant(caller.tenant_id, settings)
            async with self._database.tenant(caller.tenant_id) as tx:
                now = (await credentials.get(tx, caller.tenant_id, new_id())).now
            found, more = await installations.page(settings, number, size, self._http, now)
        except ProviderError as failure:
            error = failure.to_service_error()
            await self._record(caller, provider_id, Decision.FAILED, error.reason)
            raise error from failure
        except ServiceError as refusal:
            await self._record(caller, provider_id, Decision.DENIED, refusal.reason)
            raise
        listed = await self._with_connections(caller.tenant_id, provider_id, settings, found)
        await self._record(caller, provider_id, Decision.ALLOWED, "")
        return listed, encode_page_token([number + 1], bound_to=bound_to) if more else ""

    def _checked(
        self,
        provider: Provider,
        installations: InstallationsOfProvider,
        values: Mapping[str, Any],
    ) -> Any:
        settings = replace(provider, settings=installations.settings).parse_settings(values)
        if isinstance(settings, list):
            raise invalid(*settings)
        violations: list[Violation] = provider.url_violations(settings, self._egress_rules)
        if violations:
            raise invalid(*violations)
        return settings

    async def _with_connections(
        self, tenant_id: str, provider_id: str, settings: Any, found: Sequence[Installation]
    ) -> tuple[ListedInstallation, ...]:
        ids = [each.installation_id for each in found]
        async with self._database.tenant(tenant_id) as tx:
            standing = await connections.by_setting(
                tx, tenant_id, provider_id, "installation_id", ids
            )
        by_id = defaultdict(list)
        for each in standing:
            # Another GitHub counts its installations from 1 as well.
            if each.settings.get("api_url") == settings.api_url:
                by_id[each.settings["installation_id"]].append(each.connection_id)
        return tuple(ListedInstallation(each, tuple(by_id[each.installation_id])) for each in found)

    async def _record(
        self, caller: Caller, provider_id: str, decision: Decision, reason: str
    ) -> None:
        entry = entry_by(caller, Action.LIST_INSTALLATIONS, decision)
        async with self._database.tenant(caller.tenant_id) as tx:
            await access_log.record(
                tx, caller.tenant_id, replace(entry, provider=provider_id, reason=reason)
            )


def _installations(provider: Provider) -> InstallationsOfProvider:
    if provider.installations is None:
        raise ServiceError(
            ErrorKind.FAILED_PRECONDITION,
            "INSTALLATIONS_NOT_SUPPORTED",
            f"{provider.display_name} has no installations; github_app has.",
        )
    return provider.installations
