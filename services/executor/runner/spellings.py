"""The ways in which the world outside may spell a secret. Pure."""

import base64
import html
import json
from collections.abc import Iterator
from urllib.parse import quote, quote_plus


def spellings(secret: str) -> set[str]:
    """Return the secret as itself, and as encoders of headers, URLs, JSON and pages write it."""
    raw = secret.encode()
    in_json = json.dumps(secret)[1:-1]
    in_html = html.escape(secret)
    percent = "".join(f"%{byte:02x}" for byte in raw)
    return {
        secret,
        secret[::-1],
        raw.hex(),
        raw.hex().upper(),
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        percent,
        percent.upper(),
        secret.encode("unicode_escape").decode(),
        repr(secret)[1:-1],
        in_json,
        in_json.replace("/", "\\/"),
        json.dumps(secret, ensure_ascii=False)[1:-1],
        # JSON that is itself a text in JSON, as logs and webhooks have it.
        json.dumps(in_json)[1:-1],
        in_html,
        in_html.replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
        *_in_base64(raw),
    }


def _in_base64(raw: bytes) -> Iterator[str]:
    """What base64 makes of it wherever it begins in what was encoded, as in "user:secret"."""
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * before + raw).decode().rstrip("=")
            # The first and the last characters depend on the neighbours too.
            own = encoded[(0, 2, 3)[before] :]
            yield own
            yield own[:-1]
