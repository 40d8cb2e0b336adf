"""Opens and closes the envelopes of one connection's secret and session."""

from __future__ import annotations

import logging

from services.connections import authorization
from services.connections.authorization import Authorization, Proof
from services.connections.keyring import KeyEncryption
from services.connections.providers.provider import Material, ProviderSettings
from services.connections.secret import SECRET, SESSION, Secret, Session
from services.connections.store.credentials import StoredCredential, StoredCredentials
from services.connections.vault import Binding, Envelope, UnreadableError, seal, unseal
from services.runtime.errors import ErrorKind, ServiceError

UNREADABLE = "CREDENTIAL_UNREADABLE"
_log = logging.getLogger(__name__)


class Vault:
    """The vault with the process's keys."""

    def __init__(self, keys: KeyEncryption) -> None:
        self._keys = keys

    async def seal_secret(self, binding: Binding, secret: Secret) -> Envelope:
        """Seal what a person gave."""
        assert binding.kind == SECRET
        return await seal(secret.to_bytes(), binding, self._keys)

    async def seal_session(self, binding: Binding, session: Session) -> Envelope:
        """Seal what a provider gave."""
        assert binding.kind == SESSION
        return await seal(session.to_bytes(), binding, self._keys)

    async def seal_proof(self, binding: Binding, proof: Proof) -> Envelope:
        """Seal what only we know of an authorization."""
        assert binding.kind == authorization.KIND
        return await seal(proof.to_bytes(), binding, self._keys)

    async def open_proof(self, stored: Authorization) -> Proof:
        """Open it again. Raises ServiceError CREDENTIAL_UNREADABLE."""
        try:
            return Proof.from_bytes(await unseal(stored.envelope, stored.binding, self._keys))
        except UnreadableError as error:
            raise _unreadable(str(error)) from error

    async def material(self, settings: ProviderSettings, stored: StoredCredentials) -> Material:
        """Everything a provider works with. Raises ServiceError CREDENTIAL_UNREADABLE."""
        secret = await self._open(stored.secret)
        session = await self._open(stored.session)
        try:
            return Material(
                settings,
                Secret.from_bytes(secret) if secret is not None else None,
                Session.from_bytes(session) if session is not None else None,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable("what was sealed is not what this release reads") from error

    async def _open(self, stored: StoredCredential | None) -> bytes | None:
        if stored is None:
            return None
        try:
            return await unseal(stored.envelope, stored.binding, self._keys)
        except UnreadableError as error:
            # Whoever runs this has to know: a key is gone, or somebody changed the table.
            _log.error(
                "the %s of connection %s of tenant %s cannot be read: %s",
                *(stored.binding.kind, stored.binding.connection_id, stored.binding.tenant_id),
                error,
            )
            raise _unreadable(str(error)) from error


def _unreadable(why: str) -> ServiceError:
    return ServiceError(
        ErrorKind.FAILED_PRECONDITION,
        UNREADABLE,
        f"The stored credential cannot be read: {why}. Tell the operator, or connect again.",
    )
