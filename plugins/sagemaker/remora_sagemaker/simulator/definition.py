"""Pipeline definitions: the JSON of SageMaker Pipelines, version 2020-12-01, read and checked once.

Source of the format: "SageMaker Pipelines: pipeline definition JSON schema" (aws-sagemaker-mlops.github.io) and the
definitions that the SageMaker Python SDK writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_pascal

from remora_sagemaker.simulator.conditions import Condition
from remora_sagemaker.simulator.expressions import references

STEP_TYPES = frozenset({
    "AutoML", "Callback", "ClarifyCheck", "Condition", "EMR", "Fail", "Lambda", "Model", "Processing", "QualityCheck",
    "RegisterModel", "Training", "Transform", "Tuning",
})  # fmt: skip
"""The types of steps that are simulated."""


class DefinitionError(ValueError):
    """A pipeline definition that SageMaker would not take."""


class Parameter(BaseModel):
    """A parameter that an execution may be given."""

    model_config = ConfigDict(frozen=True, alias_generator=to_pascal, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9\-_]{1,256}$")]
    type: Literal["String", "Integer", "Float", "Boolean"]
    default_value: Annotated[str, StringConstraints(max_length=1024)] | int | float | bool | None = None
    enum_values: tuple[str | int | float | bool, ...] = ()
    description: str = ""


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_pascal, extra="allow")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9\-_]{1,64}$")]
    type: str
    display_name: Annotated[str, StringConstraints(max_length=256)] = ""
    description: Annotated[str, StringConstraints(max_length=3072)] = ""
    depends_on: tuple[str, ...] = ()
    arguments: dict[str, Any] = Field(default_factory=dict)
    cache_config: dict[str, Any] = Field(default_factory=dict)


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_pascal)

    version: Literal["2020-12-01"]
    parameters: tuple[Parameter, ...] = ()
    steps: Annotated[tuple[_Step, ...], Field(min_length=1)]


class _Branches(BaseModel):
    model_config = ConfigDict(alias_generator=to_pascal)

    conditions: tuple[Condition, ...]
    if_steps: tuple[_Step, ...] = ()
    else_steps: tuple[_Step, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """The side of a condition on which a step stands."""

    condition: str
    """Name of the condition step."""
    outcome: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step. Those inside a condition's branches stand beside the others and say which branch they are in."""

    name: str
    type: str
    display_name: str
    description: str
    depends_on: frozenset[str]
    """Names of the steps that it waits for: named, referred to, or the condition around it."""
    branch: Branch | None
    arguments: Mapping[str, Any]
    """With expressions. Of a Condition step: only its conditions."""
    conditions: Sequence[Condition]
    """Of a Condition step: what must hold, all of it."""
    properties: Mapping[str, Any]
    """What else the definition says, such as the FunctionArn of a Lambda step."""
    cached: bool
    """Whether the result of an earlier execution may be used again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """A pipeline definition, checked."""

    parameters: Mapping[str, Parameter]
    steps: Sequence[Step]
    """In an order in which each comes after those that it depends on."""


def parse_definition(text: str) -> Definition:
    """Read a definition.

    Raises:
        DefinitionError: it is not JSON, has a wrong structure, or refers to what it does not contain. The message
            names the place.
    """
    try:
        document = _Document.model_validate_json(text)
        steps = list(_flatten(document.steps, None))
    except ValidationError as error:
        raise DefinitionError("; ".join(_problems(error))) from None
    parameters = {parameter.name: parameter for parameter in document.parameters}
    _require(len(parameters) == len(document.parameters), "two parameters have the same name")
    by_name = {step.name: step for step in steps}
    _require(len(by_name) == len(steps), "two steps have the same name")
    for step in steps:
        _check_references(step, by_name, parameters)
    try:
        order = TopologicalSorter({step.name: sorted(step.depends_on) for step in steps}).static_order()
        return Definition(parameters=parameters, steps=tuple(by_name[name] for name in order))
    except CycleError as error:
        raise DefinitionError(f"the steps {' -> '.join(error.args[1])} wait for each other") from None


def _flatten(steps: Sequence[_Step], branch: Branch | None) -> Iterator[Step]:
    for step in steps:
        if step.type not in STEP_TYPES:
            known = ", ".join(sorted(STEP_TYPES))
            raise DefinitionError(f"step '{step.name}' has the type '{step.type}'; the simulator knows {known}")
        arguments = step.arguments
        conditions: Sequence[Condition] = ()
        if step.type == "Condition":
            branches = _Branches.model_validate(step.arguments)
            yield from _flatten(branches.if_steps, Branch(condition=step.name, outcome=True))
            yield from _flatten(branches.else_steps, Branch(condition=step.name, outcome=False))
            arguments = {"Conditions": step.arguments["Conditions"]}
            conditions = branches.conditions
        extra = step.model_extra or {}
        used = {ref.split(".")[1] for ref in references([arguments, extra]) if ref.startswith("Steps.")}
        around = {branch.condition} if branch else set[str]()
        yield Step(
            name=step.name,
            type=step.type,
            display_name=step.display_name,
            description=step.description,
            depends_on=frozenset({*step.depends_on, *used, *around}),
            branch=branch,
            arguments=arguments,
            conditions=conditions,
            properties=extra,
            cached=step.cache_config.get("Enabled") is True,
        )


def _check_references(step: Step, steps: Mapping[str, Step], parameters: Mapping[str, Parameter]) -> None:
    for name in sorted(step.depends_on):
        _require(name in steps, f"step '{step.name}' depends on the step '{name}', which does not exist")
    for reference in references([step.arguments, step.properties]):
        kind, _, rest = reference.partition(".")
        _require(
            kind in {"Parameters", "Steps", "Execution"} and rest != "",
            f"step '{step.name}' refers to '{reference}', which is neither a parameter, a step nor the execution",
        )
        _require(
            kind != "Parameters" or rest in parameters,
            f"step '{step.name}' refers to the parameter '{rest}', which is not declared",
        )


def _require(condition: bool, problem: str) -> None:  # noqa: FBT001 -- reads as assert
    if not condition:
        raise DefinitionError(problem)


def _problems(error: ValidationError) -> Iterator[str]:
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        place = ".".join(str(part) for part in each["loc"])
        yield f"{place}: {each['msg']}" if place else each["msg"]
