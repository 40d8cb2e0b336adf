"""Turns the sort key of a page's last row into a page token and back."""

from typing import Any

from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.opaque import seal, unseal

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1000


def page_limit(page_size: int) -> int:
    """Return how many rows a page holds: the default for 0, never more than the maximum."""
    return min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def encode_page_token(key: list[Any], *, bound_to: object) -> str:
    """Return the token of the page after `key`, valid only with the same `bound_to`.

    `bound_to` holds whatever the list depends on: RPC, tenant, filters, order. Both are plain
    JSON values.
    """
    return seal(key, bound_to=bound_to)


def decode_page_token(token: str, *, bound_to: object) -> list[Any] | None:
    """Return the key inside `token`, or None for the empty token of a first page.

    Raises ServiceError PAGE_TOKEN_INVALID when it is damaged or belongs to another list.
    """
    if not token:
        return None
    key = unseal(token, bound_to=bound_to)
    if key is None:
        raise page_token_invalid()
    return key


def page_token_invalid() -> ServiceError:
    """The token is none of this list's, or says what no page of it ends with."""
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
        "The page token is damaged or belongs to another list or filter; "
        "start again from the first page.",
    )
