"""botocore's model of SageMaker.

It is read when this module is imported (about 0.2 s), so that no file is read on a running event loop.
"""

from __future__ import annotations

from typing import Final

from botocore.loaders import Loader
from botocore.model import ServiceModel

SAGEMAKER: Final = ServiceModel(Loader().load_service_model("sagemaker", "service-2"), service_name="sagemaker")

ANY_OPERATION: Final = "*"


def require_operation(name: str) -> None:
    """Raise ValueError unless SageMaker has an operation of this name, or it is ``*``."""
    if name != ANY_OPERATION and name not in SAGEMAKER.operation_names:
        raise ValueError(f"SageMaker has no operation '{name}'")
