"""The jobs that the steps of a pipeline start: why one failed, and what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from remora_sagemaker.aws import Aws, Target
from remora_sagemaker.budget import OutOfBudgetError
from remora_sagemaker.errors import classify, is_throttling
from remora_sagemaker.validation import is_list, is_object

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildKind:
    """How to look at a kind of job. Fields are paths in the answer of the operation."""

    operation: str
    name: str
    """The request's field."""
    reasons: tuple[str, ...] = ("FailureReason",)
    artifacts: Mapping[str, str] = field(default_factory=dict[str, str])


CHILD_KINDS: Mapping[str, ChildKind] = {
    "training-job": ChildKind(
        operation="DescribeTrainingJob",
        name="TrainingJobName",
        artifacts={"modelArtifacts": "ModelArtifacts.S3ModelArtifacts"},
    ),
    "processing-job": ChildKind(
        operation="DescribeProcessingJob",
        name="ProcessingJobName",
        reasons=("FailureReason", "ExitMessage"),
        artifacts={"outputs": "ProcessingOutputConfig.Outputs.S3Output.S3Uri"},
    ),
    "transform-job": ChildKind(
        operation="DescribeTransformJob",
        name="TransformJobName",
        artifacts={"output": "TransformOutput.S3OutputPath"},
    ),
    "hyper-parameter-tuning-job": ChildKind(
        operation="DescribeHyperParameterTuningJob",
        name="HyperParameterTuningJobName",
        artifacts={"bestTrainingJob": "BestTrainingJob.TrainingJobName"},
    ),
    "automl-job": ChildKind(
        operation="DescribeAutoMLJobV2",
        name="AutoMLJobName",
        artifacts={"bestCandidate": "BestCandidate.CandidateName", "output": "OutputDataConfig.S3OutputPath"},
    ),
    "endpoint": ChildKind(operation="DescribeEndpoint", name="EndpointName"),
    "inference-component": ChildKind(operation="DescribeInferenceComponent", name="InferenceComponentName"),
}
"""By the resource in the ARN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """What a job says of itself."""

    reason: str
    """Why it failed, empty if it does not say."""
    artifacts: Mapping[str, Any]


async def read_child(aws: Aws, target: Target, arn: str, until: float) -> Child | None:
    """Look at a step's job; None if it is of no kind that can be looked at, or does not let itself be looked at.

    Raises:
        OutOfBudgetError: there is no time for it now.
    """
    resource, _, name = arn.rpartition(":")[2].partition("/")
    kind = CHILD_KINDS.get(resource)
    if kind is None or not name:
        return None
    try:
        answer = await aws.call(target, kind.operation, {kind.name: name}, until=until)
    except OutOfBudgetError:
        raise
    except Exception as error:
        if is_throttling(error):
            raise OutOfBudgetError from error
        failure = classify(error)
        if failure is None:
            raise
        # The execution has ended whether or not this is known.
        log.warning("child_job_not_read", operation=kind.operation, job=arn, code=failure.code, reason=failure.message)
        return None
    return Child(
        reason=": ".join(str(reason) for path in kind.reasons if (reason := pick(answer, path))),
        artifacts={name: found for name, path in kind.artifacts.items() if (found := pick(answer, path))},
    )


def pick(answer: Any, path: str) -> Any:  # noqa: ANN401 -- whatever stands there
    """Return what stands at a dotted path, of each item where there is a list, or None."""
    if is_list(answer):
        return [found for item in answer if (found := pick(item, path)) is not None]
    name, _, rest = path.partition(".")
    found = answer.get(name) if is_object(answer) else None
    return pick(found, rest) if rest else found
