"""ARNs and ids. The same execution gets the same id in every run of the simulator, so that runs can be compared."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Where everything is."""

    region: str = "us-east-1"
    account: str = "123456789012"

    def arn(self, resource: str) -> str:
        """Return the ARN of a resource, for example ``pipeline/TrainPipeline``."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{resource}"


def short_id(*parts: object, length: int = 12) -> str:
    """Return lower-case letters and digits that look random and depend on nothing but the parts."""
    # A client may send half a surrogate pair in a token; that is no reason to fail.
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return base64.b32encode(digest).decode().lower()[:length]
