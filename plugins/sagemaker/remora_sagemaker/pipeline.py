"""Runs SageMaker pipelines: the handler of the task type SAGEMAKER."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import structlog
from botocore.exceptions import ClientError
from remora.plugin import (
    Clock,
    Failure,
    FailureKind,
    InvalidTask,
    JobState,
    Observation,
    Polling,
    TaskDefinition,
    TaskHandler,
)

from remora_sagemaker import errors
from remora_sagemaker.aws import Aws, Target
from remora_sagemaker.budget import OutOfBudgetError
from remora_sagemaker.children import CHILD_KINDS, Child
from remora_sagemaker.executions import Execution, Seen, read_executions
from remora_sagemaker.handle import PipelineHandle, start_token
from remora_sagemaker.outcome import End, child_arns, final_observation, read_children
from remora_sagemaker.parameters import REQUEST, SageMakerParameters
from remora_sagemaker.rotation import Rotation
from remora_sagemaker.settings import SageMakerSettings
from remora_sagemaker.status import execution_state, is_final
from remora_sagemaker.steps import Step, changes, marks, one_line, progress, read_steps
from remora_sagemaker.validation import RequestValidator

log = structlog.get_logger(__name__)

START, DESCRIBE, STOP = "StartPipelineExecution", "DescribePipelineExecution", "StopPipelineExecution"

_ROUND_SECONDS = 5.0
"""How long one round of observations waits for the rate budget: news of some is better than of all at once."""
_REMEMBERED = 20_000
_GONE = ("ResourceNotFound", "ResourceNotFoundException")

Answer = Observation[PipelineHandle] | Failure | None


class PipelineHandler(TaskHandler[SageMakerParameters, PipelineHandle]):
    """One task is one execution of a pipeline."""

    task_type: ClassVar[str] = "SAGEMAKER"
    title: ClassVar[str] = "Amazon SageMaker pipeline"
    permissions: ClassVar[Sequence[str]] = (
        *(f"sagemaker:{operation}" for operation in (START, DESCRIBE, STOP)),
        "sagemaker:ListPipelineExecutions",
        "sagemaker:ListPipelineExecutionSteps",
        *(f"sagemaker:{operation}" for operation in sorted({kind.operation for kind in CHILD_KINDS.values()})),
    )
    parameters = SageMakerParameters
    handle = PipelineHandle

    def __init__(
        self, aws: Aws, validator: RequestValidator, settings: SageMakerSettings, region: str, clock: Clock
    ) -> None:
        """Run pipelines in a region, as the settings say who and where."""
        self.polling = Polling(initial=settings.poll_initial, maximum=settings.poll_maximum)
        self._aws = aws
        self._validator = validator
        self._settings = settings
        self._region = region
        self._clock = clock
        self._looked_at = Rotation(_REMEMBERED)
        self._steps_read = Rotation(_REMEMBERED)
        self._warned: set[str] = set()
        self._children: dict[str, Mapping[str, Child | None]] = {}

    def prepare(self, task: TaskDefinition, parameters: SageMakerParameters) -> PipelineHandle:
        """Check the request without AWS, and name the execution by a token. See :meth:`TaskHandler.prepare`."""
        request = parameters.request
        violations = self._validator.violations(START, request, REQUEST)
        if violations:
            raise InvalidTask(violations)
        own = str(request.get("ClientRequestToken", ""))
        return PipelineHandle(
            pipeline=str(request["PipelineName"]),
            token=start_token(task.key, own),
            token_mixed=bool(own),
            region=self._region,
            completed_with_failures=parameters.completed_with_failures or self._settings.completed_with_failures,
        )

    async def submit(
        self, task: TaskDefinition, parameters: SageMakerParameters, handle: PipelineHandle
    ) -> PipelineHandle:
        """Start the execution, or find the one that was started under its token."""
        del task
        if handle.execution_arn:
            return handle
        request = {**parameters.request, "ClientRequestToken": handle.token}
        answer = await self._aws.call(self._target(handle), START, request)
        arn = answer.get("PipelineExecutionArn")
        if not arn:
            raise errors.UnexpectedAnswerError(START)
        return handle.model_copy(update={"execution_arn": arn})

    async def observe(self, handles: Sequence[PipelineHandle]) -> Sequence[Answer]:
        """See :meth:`TaskHandler.observe`: ends first, then the steps of what runs, as far as the budget goes."""
        until = self._clock.monotonic() + _ROUND_SECONDS
        seen = await self._look(handles, until)
        answers: list[Answer] = [None] * len(handles)

        async def answer(index: int) -> None:
            answers[index] = await self._answer(handles[index], seen, until)

        running = [index for index, handle in enumerate(handles) if self._state(handle, seen) is JobState.RUNNING]
        ended = sorted(set(range(len(handles))) - set(running))
        await asyncio.gather(*map(answer, ended))
        turns = self._steps_read.order(running, lambda index: handles[index].execution_arn)
        await asyncio.gather(*map(answer, turns))
        return answers

    async def cancel(self, handle: PipelineHandle) -> None:
        """Ask the execution to stop, under a token of its own."""
        arn = handle.execution_arn
        if not arn:
            return
        target = self._target(handle)
        try:
            await self._aws.call(target, STOP, {"PipelineExecutionArn": arn, "ClientRequestToken": handle.stop_token})
        except ClientError as error:
            code = errors.code_of(error)
            if code in _GONE:
                return
            # SageMaker refuses to stop what is not executing; its status says so more surely than its words.
            if code not in ("ValidationException", "ConflictException") or await self._is_executing(target, arn):
                raise

    def classify(self, error: Exception) -> Failure | None:
        """See :meth:`TaskHandler.classify`."""
        failure = errors.classify(error)
        if failure is not None and failure.code in _GONE:
            return replace(failure, message=f"{failure.message} (region {self._region})")
        return failure

    def _target(self, handle: PipelineHandle) -> Target:
        return Target(region=handle.region, role_arn=self._settings.role_arn, endpoint=self._settings.endpoint)

    async def _is_executing(self, target: Target, arn: str) -> bool:
        answer = await self._aws.call(target, DESCRIBE, {"PipelineExecutionArn": arn})
        return answer.get("PipelineExecutionStatus") == "Executing"

    async def _look(self, handles: Sequence[PipelineHandle], until: float) -> Seen:
        regions: dict[Target, list[PipelineHandle]] = defaultdict(list)
        for handle in self._looked_at.order(handles, lambda handle: handle.execution_arn):
            if handle.execution_arn:
                regions[self._target(handle)].append(handle)
        found = await asyncio.gather(
            *(read_executions(self._aws, target, group, until) for target, group in regions.items())
        )
        seen = {arn: execution for part in found for arn, execution in part.items()}
        for arn, execution in seen.items():
            if isinstance(execution, Execution):
                self._looked_at.served(arn)
        return seen

    def _state(self, handle: PipelineHandle, seen: Seen) -> JobState | None:
        execution = seen.get(handle.execution_arn)
        if not isinstance(execution, Execution):
            return None
        state = execution_state(execution.status, handle.completed_with_failures)
        if state is None and execution.status not in self._warned:
            self._warned.add(execution.status)
            log.warning("unknown_execution_status", status=execution.status, execution=handle.execution_arn)
        return state or JobState.RUNNING

    async def _answer(self, handle: PipelineHandle, seen: Seen, until: float) -> Answer:
        try:
            execution = seen.get(handle.execution_arn)
            if isinstance(execution, Exception):
                raise execution  # noqa: TRY301 -- told below like any other
            state = self._state(handle, seen)
            if execution is None or state is None:
                return Failure(kind=FailureKind.INTERNAL, code="NotStarted", message="the execution was never started")
            if state is JobState.RUNNING:
                return await self._running(handle, execution, until)
            return await self._ended(handle, execution, state, until)
        except OutOfBudgetError:
            return None
        except Exception as error:  # noqa: BLE001 -- one handle must not spoil the others
            return self._unseen(handle, error)

    def _unseen(self, handle: PipelineHandle, error: Exception) -> Answer:
        if errors.is_throttling(error):
            return None  # the budget was too large, and is smaller now
        if errors.code_of(error) in _GONE:
            return _gone(handle, errors.code_of(error))
        failure = self.classify(error)
        if failure is not None:
            return failure
        log.error("observation_failed", execution=handle.execution_arn, exc_info=error)
        name = type(error).__name__
        message = f"{name} in the SageMaker plugin; the traceback is in the worker's log"
        return Failure(kind=FailureKind.INTERNAL, code=name, message=message)

    async def _running(self, handle: PipelineHandle, execution: Execution, until: float) -> Observation[PipelineHandle]:
        steps: Sequence[Step] = ()
        try:
            now = self._clock.monotonic()
            steps = await read_steps(self._aws, self._target(handle), handle.execution_arn, until, begin=now)
            self._steps_read.served(handle.execution_arn)
        except OutOfBudgetError:
            pass  # another time: the status is news enough
        except Exception as error:  # noqa: BLE001 -- steps that cannot be seen must not hide the status
            self._steps_unread(handle, error)
        after = _seen(handle, execution, steps)
        return Observation(
            state=JobState.RUNNING,
            detail=progress(after.status, after.steps),
            handle=None if after == handle else after,
            log=_news(handle, execution, steps),
        )

    async def _ended(
        self, handle: PipelineHandle, execution: Execution, state: JobState, until: float
    ) -> Observation[PipelineHandle]:
        steps: Sequence[Step] = ()
        unread = ""
        try:
            steps = await read_steps(self._aws, self._target(handle), handle.execution_arn, until)
        except Exception as error:
            failure = self.classify(error)
            if failure is None or failure.kind is FailureKind.TRANSIENT:
                raise
            # What has ended must not go on for want of a permission.
            unread = failure.message
            self._steps_unread(handle, error)
        children = await self._read_children(handle, steps, until)
        self._looked_at.forget(handle.execution_arn)
        self._steps_read.forget(handle.execution_arn)
        after = _seen(handle, execution, steps)
        end = End(handle=after, state=state, execution=execution, steps=steps, children=children, unread=unread)
        return final_observation(end, _news(handle, execution, steps))

    async def _read_children(
        self, handle: PipelineHandle, steps: Sequence[Step], until: float
    ) -> Mapping[str, Child | None]:
        # What was read is kept for the next round: many jobs on a small budget take several.
        known = self._children.pop(handle.execution_arn, {})
        children = await read_children(self._aws, self._target(handle), steps, until, known)
        if not set(child_arns(steps)) <= children.keys():
            self._children[handle.execution_arn] = children
            raise OutOfBudgetError
        return children

    def _steps_unread(self, handle: PipelineHandle, error: Exception) -> None:
        if errors.is_throttling(error):
            return
        failure = self.classify(error)
        if failure is None:
            raise error
        if failure.code not in self._warned:
            self._warned.add(failure.code)
            log.warning("steps_not_read", execution=handle.execution_arn, code=failure.code, reason=failure.message)


def _gone(handle: PipelineHandle, code: str) -> Observation[PipelineHandle]:
    message = (
        f"SageMaker does not know the execution {handle.execution_arn} in {handle.region} any more: it was deleted "
        "with its pipeline, or the worker now has another account"
    )
    failure = Failure(kind=FailureKind.EXECUTION, code=code, message=message)
    return Observation(state=JobState.FAILED, detail="the execution is gone", failure=failure)


def _seen(handle: PipelineHandle, execution: Execution, steps: Sequence[Step]) -> PipelineHandle:
    return handle.model_copy(update={"status": execution.status, "steps": {**handle.steps, **marks(steps)}})


def _news(handle: PipelineHandle, execution: Execution, steps: Sequence[Step]) -> Sequence[str]:
    lines: list[str] = []
    if not handle.status and handle.token_mixed:
        lines.append(
            "the ClientRequestToken of the request was made part of the token sent, which is new for each attempt"
        )
    if execution.status == handle.status:
        return [*lines, *changes(handle.steps, steps)]
    reason = f": {one_line(execution.reason)}" if execution.reason else ""
    status = f"pipeline execution: {execution.status}{reason}"
    if is_final(execution.status):
        return [*lines, *changes(handle.steps, steps), status]
    return [*lines, status, *changes(handle.steps, steps)]
