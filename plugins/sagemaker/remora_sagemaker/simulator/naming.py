"""ARNs and ids. The same execution gets the same id in every run of the simulator, so that runs can be compared."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Where everything is."""

    region: str = "us-east-1"
    account: str = "123456789012"

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be part of an ARN."""
        if not re.fullmatch(r"[a-z0-9-]{1,32}", self.region):
            raise ValueError(f"'{self.region}' is not the name of a region")
        if not re.fullmatch(r"\d{12}", self.account):
            raise ValueError(f"'{self.account}' is not an account; it has 12 digits")

    def arn(self, resource: str) -> str:
        """Return the ARN of a resource, for example ``pipeline/TrainPipeline``."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{resource}"


def short_id(*parts: object, length: int = 12) -> str:
    """Return lower-case letters and digits that look random and depend on nothing but the parts."""
    # A client may send half a surrogate pair in a token; that is no reason to fail.
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return base64.b32encode(digest).decode().lower()[:length]
