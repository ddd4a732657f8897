"""What is remembered of a pipeline execution, in the worker's journal."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field
from remora.plugin import TaskKey

from remora_sagemaker.status import CompletedWithFailures


class PipelineHandle(BaseModel):
    """One pipeline execution, named by its token before it exists.

    A handle written by a newer version is read, and what it has more is kept.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    pipeline: str
    """Name or ARN, as in the request."""
    token: str
    """ClientRequestToken of the start: SageMaker starts one execution for it, however often it is asked."""
    region: str
    completed_with_failures: CompletedWithFailures = CompletedWithFailures.FAIL
    token_mixed: bool = False
    """Whether the request had a token of its own, which is part of ours."""
    execution_arn: str = ""
    """Empty before the execution exists."""
    status: str = ""
    """SageMaker's status when last seen, empty before that."""
    steps: dict[str, str] = Field(default_factory=dict[str, str])
    """Each step's status when last seen, in the order in which they began."""

    @property
    def stop_token(self) -> str:
        """ClientRequestToken of the stop: another than the start's, and the same for each repetition."""
        return _token("stop", self.token)


def start_token(key: TaskKey, own: str) -> str:
    """Return the token under which the execution of an attempt is started.

    It depends on the task's id, the attempt, and the token in the request if there is one. So an attempt has one
    execution, whoever starts it, and a token that a person wrote once cannot make every run find the first execution.
    """
    return _token("start", key.task_id, str(key.attempt), own)


def _token(*parts: str) -> str:
    # 71 characters; SageMaker takes 32 to 128.
    return "remora-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()
