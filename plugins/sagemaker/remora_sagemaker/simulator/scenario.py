"""How an execution goes, as its request says: pipeline parameters whose names begin with Sim.

They are taken from any client and any pipeline, declared there or not. A pipeline that declares one gives it a
default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86_400, allow_inf_nan=False)]


class Scenario(BaseModel):
    """What is to happen to an execution."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    step_seconds: Seconds = Field(10.0, alias="SimStepSeconds")
    """How long each step takes; conditions and Fail steps take no time."""
    fail_step: str = Field("", alias="SimFailStep")
    """The step that fails, at its end."""
    fail_reason: str = Field("", alias="SimFailReason", max_length=1000)
    """The FailureReason of that step's job; the default is what a training script's exit code gives."""
    fail_times: int | None = Field(None, alias="SimFailTimes", ge=0)
    """How often it fails: in the first so many goes at the same pipeline with the same parameters, where each start
    and each retry is a go. None: always."""
    stop_seconds: Seconds = Field(2.0, alias="SimStopSeconds")
    """How long a stopped execution is ``Stopping``."""
    status: str = Field("", alias="SimStatus", max_length=64)
    """The status with which the execution ends, even one that the model does not have. Not if it is stopped."""
    condition: Literal["", "True", "False"] = Field("", alias="SimCondition")
    """The outcome of conditions that depend on what a job would have computed; the default is True."""


CONTROLS = frozenset(str(field.alias) for field in Scenario.model_fields.values())
"""Names of the parameters that control the scenario."""


def parse_scenario(parameters: Mapping[str, Any]) -> Scenario:
    """Read the scenario from the values of all parameters of an execution.

    Raises:
        ValueError: a control has a value that cannot be; the message names it.
    """
    controls = {name: value for name, value in parameters.items() if name in CONTROLS and value is not None}
    try:
        return Scenario.model_validate(controls)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{first['loc'][0]}: {first['msg']}") from None
