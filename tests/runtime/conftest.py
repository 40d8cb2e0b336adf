"""What the runtime's tests of tokens share: a clock, claims, and how a verifier refuses."""

from __future__ import annotations

import time
from typing import Any

import pytest

from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.tokens import TokenVerifier


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
