"""AWS behind one method: ``await aws.call(target, operation, request)``.

The SDK is synchronous, so each call runs in a thread of a bounded pool. A call waits for its share of the rate before
it takes a thread, and is made once: who wants it repeated pays for it again.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog
from botocore import xform_name
from botocore.exceptions import ClientError, NoCredentialsError
from remora.plugin import Clock

from remora_sagemaker.budget import Budget
from remora_sagemaker.credentials import assume_role, client_config, make_session
from remora_sagemaker.errors import ClosedError, is_throttling
from remora_sagemaker.settings import SageMakerSettings

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.model import ServiceModel
    from botocore.session import Session

log = structlog.get_logger(__name__)

Answer = dict[str, Any]
_method = cache(xform_name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a call goes, and as whom."""

    region: str
    role_arn: str | None = None
    """None for the worker's own identity."""
    endpoint: str | None = None
    """None for AWS's own."""


class Aws(Protocol):
    """What the handlers know of AWS, and what a test stands in for."""

    async def call(
        self, target: Target, operation: str, request: Mapping[str, Any], *, until: float = math.inf
    ) -> Answer:
        """Call an operation of SageMaker once, and return the parsed answer, with times in UTC.

        The call waits for its share of the rate, but not beyond `until` on the monotonic clock.

        Raises:
            OutOfBudgetError: `until` came first; nothing was sent.
            ClosedError: the plugin is being closed; nothing was sent.
            botocore.exceptions.ClientError: AWS refused.
            botocore.exceptions.BotoCoreError: the SDK could not call.
        """
        ...


class BotoAws:
    """AWS by botocore. One session for everybody, because its service models are large."""

    def __init__(self, settings: SageMakerSettings, clock: Clock) -> None:
        """Read the AWS configuration files, without calling anybody. Blocks for a tenth of a second."""
        self._settings = settings
        self._clock = clock
        self._session = make_session(settings)
        self._config = client_config(settings.threads)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="sagemaker")
        self._roles: dict[str, Session] = {}
        self._clients: dict[Target, BaseClient] = {}
        self._making = threading.Lock()
        self._budgets: dict[tuple[Target, str], Budget] = {}
        self._closed = False
        self.model: ServiceModel = self._session.get_service_model("sagemaker")
        """SageMaker's operations and shapes."""

    @property
    def default_region(self) -> str | None:
        """The region of the settings, of the AWS configuration, or of the container the worker runs in."""
        configured = self._settings.region or self._session.get_config_variable("region")
        return configured or os.environ.get("AWS_REGION")

    async def call(
        self, target: Target, operation: str, request: Mapping[str, Any], *, until: float = math.inf
    ) -> Answer:
        """See :meth:`Aws.call`."""
        budget = self._budget(target, operation)
        await budget.spend(until)
        if self._closed:
            raise ClosedError
        # The caller's context goes along, so that what is logged in the thread names the task.
        context = contextvars.copy_context()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: context.run(self._call, target, operation, request)
            )
        except ClientError as error:
            if is_throttling(error) and error.operation_name == operation:
                budget.throttled()
                log.info("aws_throttled", operation=operation, region=target.region, rate=budget.rate)
            raise
        budget.succeeded()
        return answer

    async def caller_identity(self, target: Target) -> str:
        """Return the ARN of who calls there, as STS says. Raises as :meth:`call`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._caller_identity, target)

    async def close(self) -> None:
        """Send nothing more, wait for the calls under way, and let the connections go."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)
        for client in self._clients.values():
            client.close()

    def _call(self, target: Target, operation: str, request: Mapping[str, Any]) -> Answer:
        try:
            return cast("Answer", getattr(self._client(target), _method(operation))(**request))
        except NoCredentialsError:
            # The client remembers that there were none; a machine may get its role later.
            with self._making:
                self._clients.pop(target, None)
                self._roles.clear()
            raise

    def _caller_identity(self, target: Target) -> str:
        with self._making:
            client: Any = self._session_of(target).create_client(
                "sts", region_name=target.region, endpoint_url=self._settings.sts_endpoint, config=self._config
            )
        try:
            return str(client.get_caller_identity()["Arn"])
        finally:
            client.close()

    def _client(self, target: Target) -> BaseClient:
        client = self._clients.get(target)
        if client is not None:
            return client
        with self._making:
            if target not in self._clients:
                self._clients[target] = self._session_of(target).create_client(
                    "sagemaker", region_name=target.region, endpoint_url=target.endpoint, config=self._config
                )
            return self._clients[target]

    def _session_of(self, target: Target) -> Session:
        if target.role_arn is None:
            return self._session
        if target.role_arn not in self._roles:
            self._roles[target.role_arn] = assume_role(self._session, target.role_arn, self._settings, target.region)
        return self._roles[target.role_arn]

    def _budget(self, target: Target, operation: str) -> Budget:
        budget = self._budgets.get((target, operation))
        if budget is None:
            rate = self._settings.rates.get(operation, self._settings.rate)
            budget = self._budgets[target, operation] = Budget(rate, self._clock)
        return budget
