"""The jobs behind the steps of pipelines: what they are called, and what Describe says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from botocore.model import Shape, StructureShape

from remora_sagemaker.simulator.expressions import UNKNOWN, Lookup, evaluate, without_unknown
from remora_sagemaker.simulator.model import SAGEMAKER
from remora_sagemaker.simulator.naming import short_id
from remora_sagemaker.simulator.protocol import Handler, validation_error
from remora_sagemaker.simulator.shapes import JsonObject, ShapeChecks, Violation, is_array, is_object
from remora_sagemaker.simulator.timeline import Outcome, StepRun

if TYPE_CHECKING:
    from remora_sagemaker.simulator.clock import SimulatedClock
    from remora_sagemaker.simulator.execution import Execution
    from remora_sagemaker.simulator.executions import Executions
    from remora_sagemaker.simulator.naming import Account


TRAINING_PHASES = ((0.1, "Starting"), (0.2, "Downloading"), (0.9, "Training"), (1.0, "Uploading"))
"""Secondary status of a training job, up to which part of its step's time."""


_CHECKS = ShapeChecks(closed=True)
_LOCATION = re.compile(r"s3://[^/\s]\S{0,800}")


class Jobs:
    """The jobs of steps, as the courses of the executions have them."""

    def __init__(self, account: Account, executions: Executions, clock: SimulatedClock) -> None:
        """Take the executions whose steps these are."""
        self._account = account
        self._executions = executions
        self._clock = clock

    def handlers(self) -> Mapping[str, Handler]:
        """Return the operations."""
        return {
            "DescribeTrainingJob": self.describe_training_job,
            "DescribeProcessingJob": self.describe_processing_job,
        }

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

    def _training_job(self, execution: Execution, run: StepRun) -> JsonObject:
        state = self._state(execution, run, "Training")
        return {
            "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
            **self._arguments(execution, run, "DescribeTrainingJob"),
            **self._identity(execution, run, _References(self, execution)),
            **state,
            "SecondaryStatus": _secondary_status(run, state["TrainingJobStatus"], self._clock.now()),
        }

    def _processing_job(self, execution: Execution, run: StepRun) -> JsonObject:
        return {
            "ProcessingResources": {"ClusterConfig": {"VolumeSizeInGB": 30}},
            "AppSpecification": {"ImageUri": "simulated"},
            **self._arguments(execution, run, "DescribeProcessingJob"),
            **self._identity(execution, run, _References(self, execution)),
            **self._state(execution, run, "Processing"),
        }

    def _arguments(self, execution: Execution, run: StepRun, operation: str) -> JsonObject:
        """Return the step's arguments as far as the answer of an operation has members for them, and they are sound."""
        shape = SAGEMAKER.operation_model(operation).output_shape
        assert shape is not None
        return sound(shape, evaluate(run.step.arguments, _References(self, execution)))

    def _identity(self, execution: Execution, run: StepRun, lookup: Lookup) -> JsonObject:
        """Return the members that other steps may refer to and that are not among the arguments."""
        name = job_name(execution, run)
        match run.step.type:
            case "Training":
                output = evaluate(_follow(run.step.arguments, ["OutputDataConfig", "S3OutputPath"]), lookup)
                usable = isinstance(output, str) and _LOCATION.fullmatch(output)
                base = output.rstrip("/") if usable else f"s3://sagemaker-{self._account.region}"
                return {
                    "TrainingJobName": name,
                    "TrainingJobArn": self._account.arn(f"training-job/{name}"),
                    "ModelArtifacts": {"S3ModelArtifacts": f"{base}/{name}/output/model.tar.gz"},
                }
            case "Processing":
                return {"ProcessingJobName": name, "ProcessingJobArn": self._account.arn(f"processing-job/{name}")}
            case _:
                return {}

    def property(self, execution: Execution, name: str, path: Sequence[str], lookup: Lookup) -> object:
        """Return what ``Steps.<name>.<path>`` stands for, or UNKNOWN."""
        for run in execution.timeline.steps:
            if run.step.name == name:
                found = _follow({**run.step.arguments, **self._identity(execution, run, lookup)}, path)
                return evaluate(found, lookup)
        return UNKNOWN

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


class _References:
    """The values of references to parameters, to the execution, and to what other steps made. Each is found once."""

    def __init__(self, jobs: Jobs, execution: Execution) -> None:
        self._jobs = jobs
        self._execution = execution
        self._known: dict[str, object] = {}

    def __call__(self, reference: str) -> object:
        if reference not in self._known:
            kind, *path = re.findall(r"[^.\[\]'\"]+", reference)
            if kind == "Steps":
                self._known[reference] = self._jobs.property(self._execution, path[0], path[1:], self)
            else:
                self._known[reference] = self._execution.lookup(reference)
        return self._known[reference]


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


def sound(shape: Shape, value: object) -> JsonObject:
    """Return those members of a value that a structure of the model has and that are as the model wants them."""
    assert isinstance(shape, StructureShape)
    members = without_unknown(value)
    if not is_object(members):
        return {}
    return {name: member for name, member in members.items() if name in shape.members and _fits(shape, name, member)}


def _fits(shape: StructureShape, name: str, value: object) -> bool:
    found: list[Violation] = []
    _CHECKS.of(shape.members[name])(value, name, found)
    return not found


def _follow(value: object, path: Sequence[str]) -> object:
    """Walk down a description by names of members and of outputs."""
    for part in path:
        if is_object(value):
            value = value.get(part, UNKNOWN)
        elif is_array(value):
            value = next((each for each in value if is_object(each) and each.get("OutputName") == part), UNKNOWN)
        else:
            return UNKNOWN
    return value
