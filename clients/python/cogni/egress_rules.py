"""Which addresses a process may call: public ones, and those its operator allows."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})")
_URL_LENGTH_MAX = 2048
# IPv6 forms that carry an IPv4 address inside: what they reach is decided by that address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, lower-case host and port of a URL."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class EgressRules:
    """The operator's word on addresses: `allowed` are (host, port) pairs free of the rules."""

    allowed: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> EgressRules:
        """Parse "host:port,host:port". Raises ValueError with the entry that is wrong."""
        pairs = set()
        for entry in filter(None, (part.strip() for part in text.split(","))):
            match = _HOST_PORT.fullmatch(entry)
            if match is None or not 0 < int(match["port"]) < 65536:
                raise ValueError(f"{entry!r} is no host:port")
            pairs.add((match["host"].strip("[]").lower(), int(match["port"])))
        return cls(frozenset(pairs))

    def allows_by_name(self, host: str, port: int) -> bool:
        """Whether the operator named this very host and port."""
        return (host.lower(), port) in self.allowed

    def complaint_about_url(self, url: str) -> str | None:
        """What forbids calling `url` before any name is resolved, or None."""
        try:
            origin = origin_of(url)
        except ValueError as error:
            return str(error)
        if self.allows_by_name(origin.host, origin.port):
            return None
        if origin.scheme != "https":
            return "must begin with https://"
        try:
            literal = ipaddress.ip_address(origin.host)
        except ValueError:
            return None
        return None if is_public(literal) else "must not be a private or local address"


def origin_of(url: str) -> Origin:
    """The origin of an http(s) URL. Raises ValueError with what is wrong with it."""
    if len(url) > _URL_LENGTH_MAX:
        raise ValueError(f"must be at most {_URL_LENGTH_MAX} characters long")
    if not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("must not contain spaces, backslashes or control characters")
    if not url.isascii():
        raise ValueError("must be ASCII: write the host in punycode and the rest percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    if ":" not in parts.hostname and not all(
        0 < len(label) < 64 for label in parts.hostname.removesuffix(".").split(".")
    ):
        raise ValueError("must have a host whose parts are 1 to 63 characters long")
    default = 443 if parts.scheme == "https" else 80
    return Origin(parts.scheme, parts.hostname.lower(), port or default)


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, embedded IPv4 addresses looked through."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified
    )


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None
