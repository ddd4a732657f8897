"""The jobs behind the steps of pipelines: what a step's metadata names, and what Describe says of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remora_sagemaker.simulator.expressions import UNKNOWN, evaluate, without_unknown
from remora_sagemaker.simulator.naming import short_id
from remora_sagemaker.simulator.paging import page
from remora_sagemaker.simulator.protocol import Handler, service_model, validation_error
from remora_sagemaker.simulator.shapes import JsonObject, ShapeChecks, Violation, is_array, is_object
from remora_sagemaker.simulator.timeline import Outcome, StepRun

if TYPE_CHECKING:
    from remora_sagemaker.simulator.clock import SimulatedClock
    from remora_sagemaker.simulator.executions import Execution, Executions
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

TRAINING_PHASES = ((0.1, "Starting"), (0.2, "Downloading"), (0.9, "Training"), (1.0, "Uploading"))
"""Secondary status of a training job, up to which part of its step's time."""


class Jobs:
    """Steps and their jobs, as the executions' courses have them."""

    def __init__(self, account: Account, executions: Executions, clock: SimulatedClock) -> None:
        """Take the executions whose steps these are."""
        self._account = account
        self._executions = executions
        self._clock = clock
        self._packages: dict[tuple[str, str], int] = {}
        self._package_count = Counter[str]()
        self._checks = ShapeChecks(closed=True)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the operations."""
        return {
            "ListPipelineExecutionSteps": self.list_steps,
            "DescribeTrainingJob": self.describe_training_job,
            "DescribeProcessingJob": self.describe_processing_job,
        }

    def clear(self) -> None:
        """Forget the model packages."""
        self._packages.clear()
        self._package_count.clear()

    def list_steps(self, request: JsonObject) -> JsonObject:
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

    def describe_training_job(self, request: JsonObject) -> JsonObject:
        """DescribeTrainingJob, for the job of a step."""
        found = self._find("Training", request["TrainingJobName"])
        if found is None:
            raise validation_error("Requested resource not found.")
        return self._training_job(*found)

    def describe_processing_job(self, request: JsonObject) -> JsonObject:
        """DescribeProcessingJob, for the job of a step."""
        found = self._find("Processing", request["ProcessingJobName"])
        if found is None:
            raise validation_error(f"Could not find requested job with name: {request['ProcessingJobName']}")
        return self._processing_job(*found)

    def _find(self, step_type: str, name: str) -> tuple[Execution, StepRun] | None:
        now = self._clock.now()
        match name.split("-"):
            case ["pipelines", identifier, *_]:
                execution = self._executions.by_id(identifier)
            case _:
                return None
        if execution is None:
            return None
        for step in (*execution.timeline.superseded, *execution.timeline.visible(now)):
            if step.step.type == step_type and step.has_job(now) and job_name(execution, step) == name:
                return execution, step
        return None

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
        return {kind: without_unknown(facts)}

    def _model_package_arn(self, execution: Execution, run: StepRun) -> str:
        """Return the ARN of the package that a RegisterModel step made. Versions count up in each group."""
        wanted = evaluate(run.step.arguments.get("ModelPackageGroupName"), execution.lookup)
        group = wanted if isinstance(wanted, str) else execution.pipeline.name
        key = execution.arn, run.step.name
        if key not in self._packages:
            self._package_count[group] += 1
            self._packages[key] = self._package_count[group]
        return self._account.arn(f"model-package/{group}/{self._packages[key]}")

    def _arguments(self, execution: Execution, run: StepRun, operation: str) -> JsonObject:
        """Return the step's arguments as far as the answer of an operation has members for them, and they are sound."""

        def look(reference: str) -> object:
            if not reference.startswith("Steps."):
                return execution.lookup(reference)
            return self._property(execution, reference)

        shape = service_model().operation_model(operation).output_shape
        assert shape is not None
        arguments = without_unknown(evaluate(run.step.arguments, look))
        sound: JsonObject = {}
        for name, value in arguments.items():
            found: list[Violation] = []
            if name in shape.members:
                self._checks.of(shape.members[name])(value, name, found)
                if not found:
                    sound[name] = value
        return sound

    def _property(self, execution: Execution, reference: str) -> object:
        """Return what a reference such as ``Steps.Train.ModelArtifacts.S3ModelArtifacts`` stands for."""
        _, name, *path = re.findall(r"[^.\[\]'\"]+", reference)
        for run in execution.timeline.steps:
            if run.step.name == name:
                match run.step.type:
                    case "Training":
                        return _follow(self._training_job(execution, run), path)
                    case "Processing":
                        return _follow(self._processing_job(execution, run), path)
                    case _:
                        return UNKNOWN
        return UNKNOWN

    def _training_job(self, execution: Execution, run: StepRun) -> JsonObject:
        arguments = self._arguments(execution, run, "DescribeTrainingJob")
        name = job_name(execution, run)
        output = arguments.get("OutputDataConfig", {}).get("S3OutputPath", f"s3://sagemaker-{self._account.region}")
        job: JsonObject = {
            "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
            **arguments,
            "TrainingJobName": name,
            "TrainingJobArn": self._account.arn(f"training-job/{name}"),
            "ModelArtifacts": {"S3ModelArtifacts": f"{output.rstrip('/')}/{name}/output/model.tar.gz"},
            **self._state(execution, run, "Training"),
        }
        job["SecondaryStatus"] = _secondary_status(run, job["TrainingJobStatus"], self._clock.now())
        return job

    def _processing_job(self, execution: Execution, run: StepRun) -> JsonObject:
        name = job_name(execution, run)
        return {
            "ProcessingResources": {"ClusterConfig": {"VolumeSizeInGB": 30}},
            "AppSpecification": {"ImageUri": "simulated"},
            **self._arguments(execution, run, "DescribeProcessingJob"),
            "ProcessingJobName": name,
            "ProcessingJobArn": self._account.arn(f"processing-job/{name}"),
            **self._state(execution, run, "Processing"),
        }

    def _state(self, execution: Execution, run: StepRun, kind: str) -> JsonObject:
        """Return the members that change while the job runs."""
        now = self._clock.now()
        status = run.status(now, execution.timeline.stopped_at)
        state: JsonObject = {
            f"{kind}JobStatus": {
                "Starting": "InProgress",
                "Executing": "InProgress",
                "Succeeded": "Completed",
            }.get(status, status),
            "CreationTime": run.start,
            f"{kind}StartTime": run.start,
            "LastModifiedTime": min(now, run.end),
        }
        if now >= run.end:
            state[f"{kind}EndTime"] = run.end
        if status == Outcome.FAILED:
            state["FailureReason"] = job_failure_reason(execution)
        return state


def job_name(execution: Execution, run: StepRun) -> str:
    """Return the name of a step's job, at most 63 characters, as SageMaker makes it: pipelines-<id>-<step>-<random>."""
    step = run.step.name[:29].replace("_", "-").strip("-")
    return f"pipelines-{execution.id}-{step}-{short_id(execution.arn, run.step.name, run.attempt, length=10)}"


def job_failure_reason(execution: Execution) -> str:
    """Return what the failed job of an execution says."""
    default = 'AlgorithmError: ExecuteUserScriptError: ExitCode 1 ErrorMessage "simulated failure", exit code: 1'
    return execution.scenario.fail_reason or default


def _secondary_status(run: StepRun, status: str, now: float) -> str:
    if status != "InProgress":
        return status
    done = (now - run.start) / (run.end - run.start)
    return next(phase for until, phase in TRAINING_PHASES if done <= until)


def _follow(value: object, path: list[str]) -> object:
    """Walk down a description by names of members and of outputs."""
    for part in path:
        if is_object(value):
            value = value.get(part, UNKNOWN)
        elif is_array(value):
            value = next((each for each in value if is_object(each) and each.get("OutputName") == part), UNKNOWN)
        else:
            return UNKNOWN
    return value
