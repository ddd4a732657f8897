"""How many pipeline executions are, with few calls: list pages where they pay, Describe for the rest.

SageMaker lists the executions of one pipeline, newest first and a hundred at a time, without a filter by status. A
page costs as much of the rate as one Describe. So executions of one pipeline are looked for page by page, as long as
a page may replace several Describes; those not found, or not running any more, are described.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from remora.plugin import FailureKind

from remora_sagemaker.aws import Answer, Aws, Target
from remora_sagemaker.errors import classify
from remora_sagemaker.handle import PipelineHandle
from remora_sagemaker.status import is_final
from remora_sagemaker.steps import PAGE

log = structlog.get_logger(__name__)

_WORTH = 10
"""How many executions a page must be looking for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What SageMaker says of an execution, from a list or from Describe."""

    status: str
    reason: str = ""
    """Why it failed."""
    changed_by: str = ""
    """ARN of who changed it last: who stopped it, if it was stopped."""


Seen = Mapping[str, Execution | Exception]
"""By ARN: how the execution is, or why that is not known."""


async def read_executions(aws: Aws, target: Target, handles: Sequence[PipelineHandle], until: float) -> Seen:
    """Look at executions of one region; where not all can be looked at until then, at the first ones."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for handle in handles:
        groups[handle.pipeline][handle.execution_arn] = None
    sweeps = await asyncio.gather(*(_sweep(aws, target, name, list(arns), until) for name, arns in groups.items()))
    seen = {arn: found for sweep in sweeps for arn, found in sweep.items()}
    # A dict keeps the order, which is whose turn it is.
    unclear = dict.fromkeys(handle.execution_arn for handle in handles if not _settled(seen.get(handle.execution_arn)))
    described = await asyncio.gather(*(_describe(aws, target, arn, until) for arn in unclear))
    return {**seen, **dict(zip(unclear, described, strict=True))}


async def _sweep(aws: Aws, target: Target, pipeline: str, arns: Sequence[str], until: float) -> Seen:
    if len(arns) == 1:
        return {}
    wanted = set(arns)
    seen: dict[str, Execution | Exception] = {}
    request: dict[str, Any] = {
        "PipelineName": pipeline,
        "SortBy": "CreationTime",
        "SortOrder": "Descending",
        "MaxResults": PAGE,
    }
    for _ in range(math.ceil(len(arns) / _WORTH)):
        try:
            answer = await aws.call(target, "ListPipelineExecutions", request, until=until)
        except Exception as error:  # noqa: BLE001 -- of a whole page, told of each execution or made up by Describe
            return {**seen, **_unswept(error, pipeline, [arn for arn in arns if arn not in seen])}
        seen.update(
            (summary["PipelineExecutionArn"], _from_summary(summary))
            for summary in answer.get("PipelineExecutionSummaries", ())
            if summary.get("PipelineExecutionArn") in wanted
        )
        if len(seen) == len(wanted) or not answer.get("NextToken"):
            break
        request = {**request, "NextToken": answer["NextToken"]}
    return seen


def _unswept(error: Exception, pipeline: str, missing: Sequence[str]) -> Seen:
    failure = classify(error)
    if failure is None or failure.kind is FailureKind.TRANSIENT:
        return dict.fromkeys(missing, error)
    log.warning("executions_not_listed", pipeline=pipeline, code=failure.code, reason=failure.message)
    return {}


async def _describe(aws: Aws, target: Target, arn: str, until: float) -> Execution | Exception:
    try:
        answer = await aws.call(target, "DescribePipelineExecution", {"PipelineExecutionArn": arn}, until=until)
    except Exception as error:  # noqa: BLE001 -- one execution that cannot be seen must not hide the others
        return error
    return _from_description(answer)


def _from_summary(summary: Answer) -> Execution:
    return Execution(
        status=summary.get("PipelineExecutionStatus", ""),
        reason=summary.get("PipelineExecutionFailureReason", ""),
    )


def _from_description(answer: Answer) -> Execution:
    changed_by: Answer = answer.get("LastModifiedBy") or {}
    identity: Answer = changed_by.get("IamIdentity") or {}
    return Execution(
        status=answer.get("PipelineExecutionStatus", ""),
        reason=answer.get("FailureReason", ""),
        changed_by=identity.get("Arn", ""),
    )


def _settled(found: Execution | Exception | None) -> bool:
    """Whether a list said enough: that it runs, or that now is no time to ask."""
    if isinstance(found, Execution):
        return not is_final(found.status)
    return found is not None
