"""What the runtime's tests share: a caller of pets; a clock, claims and refusals of tokens."""

from __future__ import annotations

import time
from typing import Any

import pytest

from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.tokens import TokenVerifier
from tests.plugins.identities import Identities


@pytest.fixture
def user(identities: Identities) -> str:
    """The token of a person who may feed pets and watch them."""
    return identities.user_token(scopes={"pets:read", "pets:write"})


class Clock:
    """A clock that moves when told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def refusal(verifier: TokenVerifier, token: str) -> str:
    """The reason for which the verifier does not believe a token."""
    with pytest.raises(ServiceError) as refused:
        await verifier.verify(token)
    assert refused.value.kind is ErrorKind.UNAUTHENTICATED
    return refused.value.reason


def user_claims() -> dict[str, Any]:
    """The claims of a caller token that is good for a minute."""
    now = int(time.time())
    return {"sub": "alice", "tenant": "acme", "aud": "cogni", "exp": now + 60}
