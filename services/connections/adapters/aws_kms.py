"""Keeps the key-encryption key in AWS KMS: data keys are wrapped there, and only there.

The envelope's binding goes along as the encryption context, so KMS itself refuses to unwrap a data
key for another row, and its own audit trail names the row.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from services.connections.keyring import UnwrappableError
from services.runtime.errors import unavailable

# What KMS says of a ciphertext it will never unwrap for us, as opposed to trouble that passes.
_NEVER = {
    "InvalidCiphertextException",
    "IncorrectKeyException",
    "NotFoundException",
    "DisabledException",
    "KMSInvalidStateException",
    "ValidationException",
}


class AwsKms:
    """One key of AWS KMS, by its ARN, id or alias. Calls run in threads: boto3 blocks."""

    def __init__(self, client: Any, key_id: str) -> None:
        """`client` is boto3's "kms" client; its retries and timeouts bound each call."""
        self._client = client
        self._key_id = key_id

    @property
    def active_key_id(self) -> str:
        """The key's name as the operator gave it."""
        return self._key_id

    async def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        """Have KMS wrap a data key. Raises ServiceError UNAVAILABLE."""
        answer = await self._call(
            "encrypt",
            KeyId=self._key_id,
            Plaintext=data_key,
            EncryptionContext=_encryption_context(context),
        )
        return self._key_id, answer["CiphertextBlob"]

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Have KMS unwrap one. Raises UnwrappableError, or ServiceError UNAVAILABLE."""
        answer = await self._call(
            "decrypt",
            KeyId=key_id,
            CiphertextBlob=wrapped,
            EncryptionContext=_encryption_context(context),
        )
        plaintext: bytes = answer["Plaintext"]
        return plaintext

    async def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = await asyncio.to_thread(
                getattr(self._client, method), **arguments
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in _NEVER:
                raise UnwrappableError("KMS does not unwrap this data key for this row") from error
            raise unavailable("The key management service refuses the call; retry.") from error
        except BotoCoreError as error:
            raise unavailable("The key management service cannot be reached; retry.") from error
        return answer


def _encryption_context(context: bytes) -> dict[str, str]:
    # Hashed: it is written to the trail in clear, and has a size limit.
    return {"cogni-binding": hashlib.sha256(context).hexdigest()}


def open_aws_kms(key_id: str, *, endpoint_url: str | None = None) -> AwsKms:
    """The key, with the credentials and region that boto3 finds. Raises RuntimeError without
    boto3, which is an extra: pip install "cogni-services[kms]"."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise RuntimeError('install "cogni-services[kms]" to use AWS KMS') from error
    config = Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 2})
    return AwsKms(boto3.client("kms", endpoint_url=endpoint_url, config=config), key_id)
