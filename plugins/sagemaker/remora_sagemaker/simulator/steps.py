"""The steps of executions as ListPipelineExecutionSteps shows them, with what each of them made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.model import StructureShape

from remora_sagemaker.simulator.expressions import UNKNOWN, evaluate
from remora_sagemaker.simulator.jobs import job_failure_reason, job_name, sound
from remora_sagemaker.simulator.model import SAGEMAKER
from remora_sagemaker.simulator.naming import short_id
from remora_sagemaker.simulator.paging import page
from remora_sagemaker.simulator.protocol import Handler, validation_error
from remora_sagemaker.simulator.shapes import JsonObject
from remora_sagemaker.simulator.timeline import Outcome, StepRun

if TYPE_CHECKING:
    from remora_sagemaker.simulator.clock import SimulatedClock
    from remora_sagemaker.simulator.execution import Execution
    from remora_sagemaker.simulator.executions import Executions
    from remora_sagemaker.simulator.naming import Account


@dataclass(frozen=True, kw_only=True, slots=True)
class JobKind:
    """What a type of step creates."""

    member: str
    """Of the step's metadata."""
    resource: str
    """Type of the resource in an ARN."""


JOB_KINDS: Mapping[str, JobKind] = {
    "AutoML": JobKind(member="AutoMLJob", resource="automl-job"),
    "Model": JobKind(member="Model", resource="model"),
    "Processing": JobKind(member="ProcessingJob", resource="processing-job"),
    "Training": JobKind(member="TrainingJob", resource="training-job"),
    "Transform": JobKind(member="TransformJob", resource="transform-job"),
    "Tuning": JobKind(member="TuningJob", resource="hyper-parameter-tuning-job"),
}
"""By type of step: those whose metadata is the ARN of a job that is named after the step."""


class Steps:
    """The steps of all executions."""

    def __init__(self, account: Account, executions: Executions, clock: SimulatedClock) -> None:
        """Take the executions whose steps these are."""
        self._account = account
        self._executions = executions
        self._clock = clock
        self._packages: dict[tuple[str, str], int] = {}
        self._package_count = Counter[str]()

    def handlers(self) -> Mapping[str, Handler]:
        """Return the operations."""
        return {"ListPipelineExecutionSteps": self.list}

    def clear(self) -> None:
        """Forget the model packages."""
        self._packages.clear()
        self._package_count.clear()

    def list(self, request: JsonObject) -> JsonObject:
        """ListPipelineExecutionSteps, the latest first."""
        if "PipelineExecutionArn" not in request:
            raise validation_error("PipelineExecutionArn must be given.")
        execution = self._executions.find(request["PipelineExecutionArn"])
        now = self._clock.now()
        numbered = list(enumerate(execution.timeline.visible(now)))
        chosen, more = page(
            numbered,
            request,
            scope=f"ListPipelineExecutionSteps/{execution.arn}",
            key=lambda each: (each[1].start, each[0]),
        )
        return {"PipelineExecutionSteps": [self._step(execution, step, now) for _, step in chosen], **more}

    def _step(self, execution: Execution, run: StepRun, now: float) -> JsonObject:
        stopped_at = execution.timeline.stopped_at
        step: JsonObject = {
            "StepName": run.step.name,
            "StartTime": run.start,
            "StepStatus": run.status(now, stopped_at),
            "AttemptCount": run.attempt,
        }
        if run.step.display_name:
            step["StepDisplayName"] = run.step.display_name
        if run.step.description:
            step["StepDescription"] = run.step.description
        if now >= run.end:
            step["EndTime"] = run.end
            if run.outcome is Outcome.FAILED:
                step["FailureReason"] = self._failure_reason(execution, run)
        if execution.reused_from is not None and run.step.name in execution.plan.reused:
            step["CacheHitResult"] = {"SourcePipelineExecutionArn": execution.reused_from.arn}
        if run.has_job(now):
            step["Metadata"] = self._metadata(execution, run, now)
        return step

    def _failure_reason(self, execution: Execution, run: StepRun) -> str:
        if run.reason:
            return run.reason
        if run.step.type == "Fail":
            message = evaluate(run.step.arguments.get("ErrorMessage", ""), execution.lookup)
            return str("" if message is UNKNOWN else message)[:1024]
        return f"ClientError: {job_failure_reason(execution)}"

    def _metadata(self, execution: Execution, run: StepRun, now: float) -> JsonObject:
        """Return what SageMaker shows of the thing that a step made, by the member's name."""
        kind = run.step.type
        if kind in JOB_KINDS:
            job = JOB_KINDS[kind]
            return {job.member: {"Arn": self._account.arn(f"{job.resource}/{job_name(execution, run)}")}}
        match kind:
            case "RegisterModel":
                facts: JsonObject = {"Arn": self._model_package_arn(execution, run)}
            case "Condition":
                facts = {"Outcome": str(execution.plan.outcomes[run.step.name])}
            case "Fail":
                facts = {"ErrorMessage": self._failure_reason(execution, run)}
            case "Lambda":
                facts = {"Arn": evaluate(run.step.properties.get("FunctionArn", UNKNOWN), execution.lookup)}
            case "Callback":
                answer = execution.answers.get((run.step.name, run.attempt))
                facts = {
                    "CallbackToken": execution.callback_token(run),
                    "SqsQueueUrl": evaluate(run.step.properties.get("SqsQueueUrl", UNKNOWN), execution.lookup),
                    "OutputParameters": list(answer.outputs) if answer and now >= answer.at else [],
                }
            case "EMR":
                identifier = short_id(execution.arn, run.step.name, run.attempt).upper()
                facts = {"ClusterId": f"j-{identifier}", "StepId": f"s-{identifier}"}
            case _:
                facts = {"CheckJobArn": self._account.arn(f"processing-job/{job_name(execution, run)}")}
        shape = SAGEMAKER.shape_for("PipelineExecutionStepMetadata")
        assert isinstance(shape, StructureShape)
        return {kind: sound(shape.members[kind], facts)}

    def _model_package_arn(self, execution: Execution, run: StepRun) -> str:
        """Return the ARN of the package that a RegisterModel step made.

        Versions count up in each group, in the order in which the packages are first looked at.
        """
        wanted = evaluate(run.step.arguments.get("ModelPackageGroupName"), execution.lookup)
        group = wanted if isinstance(wanted, str) else execution.pipeline.name
        key = execution.arn, run.step.name
        if key not in self._packages:
            self._package_count[group] += 1
            self._packages[key] = self._package_count[group]
        return self._account.arn(f"model-package/{group}/{self._packages[key]}")
