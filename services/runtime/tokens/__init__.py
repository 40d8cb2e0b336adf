"""Bearer tokens: verified for callers, services and runs; made for services and runs."""

from services.runtime.tokens.claims import CLOCK_SKEW, service_audience
from services.runtime.tokens.keys import FileKeys, KeysError, KeySource, SecretKey, UrlKeys
from services.runtime.tokens.signing import ServiceTokens, load_service_key, mint_run_token
from services.runtime.tokens.verifier import TokenVerifier

__all__ = [
    "CLOCK_SKEW",
    "FileKeys",
    "KeySource",
    "KeysError",
    "SecretKey",
    "ServiceTokens",
    "TokenVerifier",
    "UrlKeys",
    "load_service_key",
    "mint_run_token",
    "service_audience",
]
