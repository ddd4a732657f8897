"""The fields of a DAG file as pydolphinscheduler 4.1 names them, and what becomes of each of them here.

A field is read; or ignored with a note, because it changes nothing about what runs; or refused, because without it
something else would run than what was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints

IGNORED_IN_WORKFLOW: Mapping[str, str] = {
    "schedule": "a workflow runs when it is submitted",
    "online_schedule": "a workflow runs when it is submitted",
    "start_time": "a workflow runs when it is submitted",
    "end_time": "a workflow runs when it is submitted",
    "run": "a workflow runs when it is submitted",
    "release_state": "a workflow runs when it is submitted",
    "execution_type": "runs of a workflow do not wait for each other",
    "timeout": "the timeout of a workflow only warns, and there are no alerts",
    "warning_type": "there are no alerts",
    "warning_group_id": "there are no alerts",
    "user": "there are no users",
    "tenant": "there are no tenants",
    "project": "there are no projects",
    "queue": "there are no queues",
    "resource_plugin": "workers fetch no files",
    "resource_list": "workers fetch no files",
}
IGNORED_IN_TASK: Mapping[str, str] = {
    "task_priority": "ready tasks start in the order of the file",
    "task_group_priority": "there are no task groups",
    "environment_name": "a worker has its own configuration",
    "is_cache": "every task runs",
    "resource_plugin": "workers fetch no files",
    "resource_list": "workers fetch no files",
}
REFUSED_IN_TASK: Mapping[str, str] = {
    "task_group_id": "task groups, which limit how many tasks run at once, are not supported",
    "dependence": "tasks cannot depend on other workflows",
    "wait_start_timeout": "tasks wait for a worker for as long as it takes",
    "condition_result": "workflows cannot branch",
}
REFUSED_TASK_TYPES = frozenset({"CONDITION", "SWITCH", "DEPENDENT", "SUBPROCESS", "SUBWORKFLOW"})
"""DolphinScheduler's master runs these itself; no worker does."""

_TYPES = "VARCHAR|INTEGER|LONG|FLOAT|DOUBLE|DATE|TIME|TIMESTAMP|BOOLEAN|LIST|FILE"
_TYPED = re.compile(rf"\A(?:{_TYPES})\((.*)\)\Z", re.DOTALL)


def _properties(value: JsonValue) -> JsonValue:
    """Read ``{n: 3}`` as ``[{prop: n, value: 3}]``."""
    return [{"prop": name, "value": part} for name, part in value.items()] if isinstance(value, dict) else value


def _typed(value: JsonValue) -> JsonValue:
    """Read ``INTEGER(3)``, which only `input_params` and `output_params` know, as ``3``."""
    if not isinstance(value, dict):
        return value
    return {name: _TYPED.sub(r"\1", part) if isinstance(part, str) else part for name, part in value.items()}


def _request(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise ValueError("must be the request as JSON text or as a mapping")  # noqa: TRY004 -- pydantic's protocol
    return value


def _flag(value: JsonValue) -> JsonValue:
    return {True: "YES", False: "NO"}[value] if isinstance(value, bool) else value


class Property(BaseModel):
    """A parameter. Its value is used as text whatever the type says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prop: str = Field(min_length=1)
    direct: Literal["IN", "OUT"] = "IN"
    type: str = "VARCHAR"
    value: JsonValue = ""


Properties = Annotated[list[Property], BeforeValidator(_properties)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=150, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Minutes = Annotated[float, Field(ge=0, le=1_000_000)]


class WorkflowFields(BaseModel):
    """The mapping under ``workflow``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    description: str | None = None
    param: Properties = Field(default=[], validation_alias=AliasChoices("param", "params"))
    worker_group: str | None = None
    timezone: str | None = None


class TaskFields(BaseModel):
    """One mapping in the list under ``tasks``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    task_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]
    deps: list[str] = []
    sagemaker_request_json: Annotated[str | None, BeforeValidator(_request)] = None
    params: dict[str, JsonValue] = {}
    """Parameters of the task type that the dialect has no field for."""
    local_params: Properties = []
    input_params: Annotated[Properties, BeforeValidator(_typed)] = []
    output_params: Annotated[Properties, BeforeValidator(_typed)] = []
    description: str | None = None
    flag: Annotated[Literal["YES", "NO"], BeforeValidator(_flag)] = "YES"
    fail_retry_times: Annotated[int, Field(ge=0, le=1000)] = 0
    fail_retry_interval: Minutes = 1.0
    delay_time: Minutes = 0.0
    timeout: Minutes | None = None
    timeout_flag: Literal["OPEN", "CLOSE"] = "OPEN"
    timeout_notify_strategy: Literal["WARN", "FAILED", "WARNFAILED"] | None = None
    worker_group: str | None = None
