"""The plugin ``sagemaker``: what the entry point names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from remora.pace import SystemClock
from remora.plugin import Clock, Failure, FailureKind, Plugin, TaskHandler

from remora_sagemaker.settings import RATES, REGION, SageMakerSettings
from remora_sagemaker.validation import RequestValidator, nearest

if TYPE_CHECKING:
    from remora_sagemaker.aws import BotoAws

_NO_REGION = f"no AWS region: set {' or '.join(REGION)}, or the region of the AWS configuration (AWS_REGION)"


class SageMakerPlugin(Plugin):
    """Runs tasks on Amazon SageMaker."""

    name: ClassVar[str] = "sagemaker"
    prefixes: ClassVar[Sequence[str]] = ("aws.sagemaker.",)
    settings = SageMakerSettings

    def open(
        self, settings: SageMakerSettings, clock: Clock
    ) -> AbstractAsyncContextManager[Sequence[TaskHandler[Any, Any]]]:
        """Load the SDK and SageMaker's model; calls nobody.

        Raises:
            ValueError: no region is configured anywhere, a rate is given for an operation that does not exist, or the
                AWS configuration files are wrong.
        """
        return _open(settings, clock)

    async def check(self, settings: SageMakerSettings) -> Sequence[Failure]:
        """Look for a region and credentials, and ask AWS whose they are.

        With an endpoint in place of AWS's own, that endpoint is asked for a list of pipelines instead.
        """
        from remora_sagemaker.errors import classify  # noqa: PLC0415 -- imports the SDK, see _load

        try:
            async with _connect(settings, SystemClock()) as aws:
                await _call_once(aws, settings)
        except ValueError as error:
            return [Failure(kind=FailureKind.DENIED, code="Settings", message=str(error))]
        except Exception as error:
            failure = classify(error)
            if failure is None:
                raise
            return [failure]
        return []


@asynccontextmanager
async def _open(settings: SageMakerSettings, clock: Clock) -> AsyncGenerator[Sequence[TaskHandler[Any, Any]], None]:
    async with _connect(settings, clock) as aws:
        from remora_sagemaker.pipeline import PipelineHandler  # noqa: PLC0415 -- imports the SDK, see _load

        yield [PipelineHandler(aws, RequestValidator(aws.model), settings, _region(aws), clock)]


@asynccontextmanager
async def _connect(settings: SageMakerSettings, clock: Clock) -> AsyncGenerator[BotoAws, None]:
    aws = await asyncio.to_thread(_load, settings, clock)
    try:
        _region(aws)
        _check_rates(settings, aws)
        yield aws
    finally:
        await aws.close()


def _load(settings: SageMakerSettings, clock: Clock) -> BotoAws:
    # The SDK takes a quarter of a second and 30 MB: only who opens the plugin pays, and not on the event loop.
    from remora_sagemaker.aws import BotoAws  # noqa: PLC0415
    from remora_sagemaker.errors import classify  # noqa: PLC0415

    try:
        return BotoAws(settings, clock)
    except Exception as error:
        failure = classify(error)
        if failure is None:
            raise
        raise ValueError(failure.message) from error


def _region(aws: BotoAws) -> str:
    region = aws.default_region
    if not region:
        raise ValueError(_NO_REGION)
    return region


def _check_rates(settings: SageMakerSettings, aws: BotoAws) -> None:
    for operation in settings.rates:
        if operation not in aws.model.operation_names:
            meant = nearest(operation, aws.model.operation_names)
            hint = f"; did you mean {meant}?" if meant else ""
            msg = f"{RATES}: {operation} is not an operation of SageMaker{hint}"
            raise ValueError(msg)


async def _call_once(aws: BotoAws, settings: SageMakerSettings) -> None:
    from remora_sagemaker.aws import Target  # noqa: PLC0415 -- imports the SDK, see _load

    target = Target(region=_region(aws), role_arn=settings.role_arn, endpoint=settings.endpoint)
    if settings.endpoint and not settings.sts_endpoint:
        await aws.call(target, "ListPipelines", {"MaxResults": 1})
    else:
        await aws.caller_identity(target)
