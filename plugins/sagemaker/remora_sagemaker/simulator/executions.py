"""Pipeline executions: start, look, stop, retry, answer callbacks.

Assumptions where the documentation of SageMaker is silent:

- A ClientRequestToken that comes again with another request is a ConflictException.
- Stopping an execution that has ended is a ValidationException, with the words of the service; stopping one that is
  stopping already is accepted.
- Retrying is refused with a ValidationException unless the execution is Failed or Stopped.
- When a step fails, the steps that are running go on to their end and no other starts.
- A new parallelism of UpdatePipelineExecution counts from the next retry.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remora_sagemaker.simulator import parameters
from remora_sagemaker.simulator.execution import Execution, execution_lookup
from remora_sagemaker.simulator.naming import short_id
from remora_sagemaker.simulator.paging import created_between, page
from remora_sagemaker.simulator.pipelines import Pipeline, refuse_alias
from remora_sagemaker.simulator.planning import History, make_plan
from remora_sagemaker.simulator.protocol import ApiError, Handler, not_found, validation_error
from remora_sagemaker.simulator.scenario import parse_scenario
from remora_sagemaker.simulator.shapes import JsonObject
from remora_sagemaker.simulator.timeline import CallbackAnswer, Run, StepRun

if TYPE_CHECKING:
    from remora_sagemaker.simulator.clock import SimulatedClock
    from remora_sagemaker.simulator.pipelines import Pipelines


class Executions:
    """The executions of all pipelines."""

    def __init__(self, pipelines: Pipelines, clock: SimulatedClock) -> None:
        """Start with none."""
        self._pipelines = pipelines
        self._clock = clock
        self._executions: dict[str, Execution] = {}
        self._by_id: dict[str, Execution] = {}
        self._running: dict[str, Execution] = {}
        self._sequence = itertools.count()
        self.quota: int | None = None
        """How many may run at once in the account; None: any number."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the operations."""
        return {
            "StartPipelineExecution": self.start,
            "DescribePipelineExecution": self.describe,
            "UpdatePipelineExecution": self.update,
            "StopPipelineExecution": self.stop,
            "RetryPipelineExecution": self.retry,
            "ListPipelineExecutions": self.list,
            "DescribePipelineDefinitionForExecution": self.describe_definition,
            "ListPipelineParametersForExecution": self.list_parameters,
            "SendPipelineExecutionStepSuccess": self.send_success,
            "SendPipelineExecutionStepFailure": self.send_failure,
        }

    def __iter__(self) -> Iterator[Execution]:
        return iter(self._executions.values())

    def clear(self) -> None:
        """Forget all of them."""
        self._executions.clear()
        self._by_id.clear()
        self._running.clear()

    def find(self, arn: str) -> Execution:
        """Return an execution, or raise ApiError."""
        execution = self._executions.get(arn)
        if execution is None or not self._pipelines.has(execution.pipeline):
            raise not_found(f"Pipeline execution with ARN {arn} does not exist.")
        return execution

    def by_id(self, identifier: str) -> Execution | None:
        """Return the execution with an id, the last part of its ARN."""
        return self._by_id.get(identifier)

    def start(self, request: JsonObject) -> JsonObject:
        """StartPipelineExecution."""
        pipeline = self._pipelines.find(request["PipelineName"])
        request = {**request, "PipelineName": pipeline.name}
        known = pipeline.by_token.get(request["ClientRequestToken"])
        if known is not None:
            if known.request != request:
                raise _token_conflict(request)
            known.replays += 1
            return {"PipelineExecutionArn": known.arn}
        execution = self._create(pipeline, request)
        self._require_capacity()
        goes, _ = pipeline.latest.get(execution.parameters_key, (0, None))
        pipeline.latest[execution.parameters_key] = goes + 1, execution
        pipeline.executions.append(execution)
        pipeline.by_token[execution.token] = execution
        self._executions[execution.arn] = execution
        self._by_id[execution.id] = execution
        self._running[execution.arn] = execution
        return {"PipelineExecutionArn": execution.arn}

    def _create(self, pipeline: Pipeline, request: JsonObject) -> Execution:
        refuse_alias(request)
        version = pipeline.version(request.get("PipelineVersionId"))
        selection: JsonObject = request.get("SelectiveExecutionConfig", {})
        if "SourcePipelineExecutionArn" in selection:
            self.find(selection["SourcePipelineExecutionArn"])
        now = self._clock.now()
        identifier = short_id(pipeline.arn, request["ClientRequestToken"])
        arn = f"{pipeline.arn}/execution/{identifier}"
        try:
            values = parameters.bind(version.definition.parameters, request.get("PipelineParameters", ()))
            scenario = parse_scenario(values)
            parameters_key = json.dumps(values, sort_keys=True)
            goes, previous = pipeline.latest.get(parameters_key, (0, None))
            plan = make_plan(
                version.definition,
                scenario,
                execution_lookup(pipeline, arn, now, values),
                selected={each["StepName"] for each in selection.get("SelectedSteps", ())},
                history=History(goes=goes, succeeded=_succeeded(previous, now)),
            )
        except ValueError as error:
            raise validation_error(str(error)) from None
        return Execution(
            id=identifier,
            arn=arn,
            pipeline=pipeline,
            sequence=next(self._sequence),
            created_at=now,
            modified_at=now,
            request=request,
            version=version,
            values=values,
            parameters_key=parameters_key,
            scenario=scenario,
            plan=plan,
            runs=(Run(started_at=now, parallelism=_parallelism(request, pipeline.shown)),),
            reused_from=previous if plan.reused else None,
        )

    def describe(self, request: JsonObject) -> JsonObject:
        """DescribePipelineExecution."""
        execution = self.find(request["PipelineExecutionArn"])
        now = self._clock.now()
        shown = execution.shown
        answer: JsonObject = {
            "PipelineArn": execution.pipeline.arn,
            "PipelineExecutionArn": execution.arn,
            "PipelineExecutionDisplayName": execution.display_name,
            "PipelineExecutionStatus": execution.status(now),
            "CreationTime": execution.created_at,
            "LastModifiedTime": execution.last_modified(now),
            "CreatedBy": {},
            "LastModifiedBy": {},
            "PipelineVersionId": execution.version.number,
        }
        for member in ("PipelineExecutionDescription", "ParallelismConfiguration", "SelectiveExecutionConfig"):
            if member in shown:
                answer[member] = shown[member]
        reason = execution.failure_reason(now)
        if reason:
            answer["FailureReason"] = reason
        return answer

    def update(self, request: JsonObject) -> JsonObject:
        """UpdatePipelineExecution: its name, description and parallelism."""
        execution = self.find(request["PipelineExecutionArn"])
        changes = {name: value for name, value in request.items() if name != "PipelineExecutionArn"}
        execution.updates = {**execution.updates, **changes}
        execution.modified_at = self._clock.now()
        return {"PipelineExecutionArn": execution.arn}

    def stop(self, request: JsonObject) -> JsonObject:
        """StopPipelineExecution."""
        execution = self.find(request["PipelineExecutionArn"])
        if not self._is_repeated(execution, "Stop", request):
            now = self._clock.now()
            if execution.timeline.is_over(now):
                raise validation_error(
                    f"Pipeline execution with ARN {execution.arn} has the status {execution.status(now)}. "
                    "Only pipelines with 'Executing' status can be stopped."
                )
            if execution.runs[-1].stopped_at == math.inf:
                execution.change(now, runs=(*execution.runs[:-1], replace(execution.runs[-1], stopped_at=now)))
            execution.tokens[request["ClientRequestToken"]] = "Stop"
        return {"PipelineExecutionArn": execution.arn}

    def retry(self, request: JsonObject) -> JsonObject:
        """RetryPipelineExecution: goes on from the steps that failed or were stopped."""
        execution = self.find(request["PipelineExecutionArn"])
        if not self._is_repeated(execution, "Retry", request):
            now = self._clock.now()
            status = execution.status(now)
            if status not in {"Failed", "Stopped"}:
                raise validation_error(
                    f"Pipeline execution with ARN {execution.arn} has the status {status}. "
                    "Only pipelines with 'Failed' or 'Stopped' status can be retried."
                )
            self._require_capacity()
            run = Run(started_at=now, parallelism=_parallelism(request, execution.shown, execution.pipeline.shown))
            execution.change(now, runs=(*execution.runs, run))
            execution.tokens[request["ClientRequestToken"]] = "Retry"
            self._running[execution.arn] = execution
        return {"PipelineExecutionArn": execution.arn}

    def list(self, request: JsonObject) -> JsonObject:
        """ListPipelineExecutions."""
        refuse_alias(request)
        pipeline = self._pipelines.find(request["PipelineName"])
        now = self._clock.now()
        found = created_between(pipeline.executions, request, created=lambda each: each.created_at)
        scope = f"ListPipelineExecutions/{pipeline.name}/{request.get('SortBy')}"
        if request.get("SortBy") == "PipelineExecutionArn":
            found = sorted(found, key=lambda each: each.arn)
            chosen, more = page(found, request, scope=scope, key=lambda each: (each.arn,))
        else:
            chosen, more = page(found, request, scope=scope, key=lambda each: (each.sequence,))
        return {"PipelineExecutionSummaries": [_summary(execution, now) for execution in chosen], **more}

    def describe_definition(self, request: JsonObject) -> JsonObject:
        """DescribePipelineDefinitionForExecution."""
        execution = self.find(request["PipelineExecutionArn"])
        return {"PipelineDefinition": execution.version.text, "CreationTime": execution.created_at}

    def list_parameters(self, request: JsonObject) -> JsonObject:
        """ListPipelineParametersForExecution: those that were given and the defaults of the others."""
        execution = self.find(request["PipelineExecutionArn"])
        chosen, more = page(
            sorted(execution.values),
            request,
            scope=f"ListPipelineParametersForExecution/{execution.arn}",
            key=lambda name: (name,),
            default_order="Ascending",
        )
        return {
            "PipelineParameters": [{"Name": name, "Value": _text(execution.values[name])} for name in chosen],
            **more,
        }

    def send_success(self, request: JsonObject) -> JsonObject:
        """SendPipelineExecutionStepSuccess."""
        outputs = request.get("OutputParameters", ())
        return self._answer(request, CallbackAnswer(at=self._clock.now(), succeeded=True, outputs=outputs))

    def send_failure(self, request: JsonObject) -> JsonObject:
        """SendPipelineExecutionStepFailure."""
        reason = request.get("FailureReason", "")
        return self._answer(request, CallbackAnswer(at=self._clock.now(), succeeded=False, reason=reason))

    def _answer(self, request: JsonObject, answer: CallbackAnswer) -> JsonObject:
        execution, step_run = self._callback(request["CallbackToken"], answer.at)
        key = step_run.step.name, step_run.attempt
        earlier = execution.answers.get(key)
        if earlier is None:
            execution.answers[key] = answer
            execution.change(answer.at)
        elif replace(earlier, at=answer.at) != answer:
            raise ApiError("ConflictException", f"The callback of step '{step_run.step.name}' was answered already.")
        return {"PipelineExecutionArn": execution.arn}

    def _callback(self, token: str, now: float) -> tuple[Execution, StepRun]:
        for execution in self._executions.values():
            for step_run in execution.timeline.visible(now):
                if step_run.step.type == "Callback" and execution.callback_token(step_run) == token:
                    return execution, step_run
        raise not_found(f"No callback step has the token '{token}'.")

    def _is_repeated(self, execution: Execution, operation: str, request: JsonObject) -> bool:
        used_for = execution.tokens.get(request["ClientRequestToken"], operation)
        if used_for != operation:
            raise _token_conflict(request)
        return request["ClientRequestToken"] in execution.tokens

    def _require_capacity(self) -> None:
        if self.quota is None:
            return
        now = self._clock.now()
        self._running = {arn: each for arn, each in self._running.items() if not each.timeline.is_over(now)}
        if len(self._running) >= self.quota:
            raise ApiError(
                "ResourceLimitExceeded",
                "The account-level service limit 'Number of concurrent pipeline executions' is "
                f"{self.quota} Executions, with current utilization of {len(self._running)} Executions and a request "
                "delta of 1 Executions. Please use AWS Service Quotas to request an increase for this quota.",
            )


def _succeeded(previous: Execution | None, now: float) -> set[str]:
    if previous is None:
        return set()
    return {run.step.name for run in previous.timeline.steps if run.end <= now and run.outcome == "Succeeded"}


def _token_conflict(request: Mapping[str, Any]) -> ApiError:
    token = request["ClientRequestToken"]
    return ApiError("ConflictException", f"The ClientRequestToken '{token}' was used with another request.")


def _parallelism(*requests: Mapping[str, Any]) -> float:
    """Return how many steps may run at once; the first request that says so decides."""
    for request in requests:
        if "ParallelismConfiguration" in request:
            return float(request["ParallelismConfiguration"]["MaxParallelExecutionSteps"])
    return math.inf


def _summary(execution: Execution, now: float) -> JsonObject:
    summary: JsonObject = {
        "PipelineExecutionArn": execution.arn,
        "StartTime": execution.created_at,
        "PipelineExecutionStatus": execution.status(now),
        "PipelineExecutionDisplayName": execution.display_name,
    }
    if "PipelineExecutionDescription" in execution.shown:
        summary["PipelineExecutionDescription"] = execution.shown["PipelineExecutionDescription"]
    reason = execution.failure_reason(now)
    if reason:
        summary["PipelineExecutionFailureReason"] = reason
    return summary


def _text(value: parameters.Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
