"""The parameters of a SAGEMAKER task, as DolphinScheduler writes them.

A request in DolphinScheduler's form is the text of a JSON object in the field ``sagemakerRequestJson``; the object
itself is taken too. Fields that DolphinScheduler adds to every task mean nothing here and are ignored by name; any
other unknown field is an error, because a misspelt option that does nothing is worse than a refused task.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from remora.plugin import InvalidTask

from remora_sagemaker.status import CompletedWithFailures
from remora_sagemaker.validation import MAX_VIOLATIONS, is_object, nearest

REQUEST = "sagemakerRequestJson"
_REQUEST_SPELLINGS = (REQUEST, "SagemakerRequestJson", "sagemaker_request_json")
_COMPLETED_WITH_FAILURES = "completedWithFailures"
_KNOWN = (*_REQUEST_SPELLINGS, _COMPLETED_WITH_FAILURES)

_STRUCTURAL = frozenset({
    "conditionResult",
    "datasource",
    "dependence",
    "localParams",
    "resourceFilesList",
    "resourceList",
    "switchResult",
    "type",
    "varPool",
    "waitStartTimeout",
})  # fmt: skip
"""What DolphinScheduler and pydolphinscheduler put into the taskParams of any task."""

_REFUSED = {
    "username": "plugin.sagemaker.access.key.id",
    "password": "plugin.sagemaker.access.key.secret",
    "awsRegion": "plugin.sagemaker.region",
}
"""Fields of DolphinScheduler's form that would put secrets into the journal, and where they belong instead."""

_PLACEHOLDER = re.compile(r"\$\{[^{}$]*\}|\$\[[^\]$]*\]")


_REQUEST_SCHEMA = {
    "anyOf": [
        {"type": "object", "required": ["PipelineName"], "properties": {"PipelineName": {"type": "string"}}},
        {"type": "string", "contentMediaType": "application/json"},
    ]
}


class SageMakerParameters(BaseModel):
    """Run a SageMaker pipeline and follow it to its end."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, title="SageMaker pipeline")

    request: Annotated[dict[str, JsonValue], WithJsonSchema(_REQUEST_SCHEMA)] = Field(
        validation_alias=AliasChoices(*_REQUEST_SPELLINGS),
        title="StartPipelineExecution request",
        description=(
            "The request of SageMaker's StartPipelineExecution, as a JSON object or as its text. It is sent as it is, "
            "but for ClientRequestToken: the worker sends one of its own for each attempt, so that an attempt never "
            "starts twice and a retry never finds an old execution. A token given here is made part of it."
        ),
        examples=[{"PipelineName": "AbalonePipeline", "PipelineParameters": [{"Name": "Epochs", "Value": "10"}]}],
    )
    completed_with_failures: CompletedWithFailures | None = Field(
        None,
        validation_alias=AliasChoices(_COMPLETED_WITH_FAILURES),
        title="Completed with failures",
        description=(
            'What the status CompletedWithFailures means: "fail" or "succeed". '
            "If absent, as configured for the worker, which is fail unless changed."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: object) -> object:
        if is_object(data) and (violations := dict(islice(_field_violations(data), MAX_VIOLATIONS))):
            raise InvalidTask(violations)
        return data

    @field_validator("request", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        try:
            return _parse_request(value)
        except RecursionError:
            raise InvalidTask({REQUEST: "is nested too deeply"}) from None


def _parse_request(value: object) -> object:
    request = _parse_json(value) if isinstance(value, str) else value
    if not is_object(request):
        raise InvalidTask({REQUEST: "must be a JSON object, or the text of one"})
    # Nearly no text has a dollar in it, and looking for one is much cheaper than looking at every value.
    if not isinstance(value, str) or "$" in value or "u0024" in value:
        left = dict(islice(_unresolved_placeholders(request, REQUEST), MAX_VIOLATIONS))
        if left:
            raise InvalidTask(left)
    return request


def _unresolved_placeholders(request: JsonValue, path: str) -> Iterable[tuple[str, str]]:
    for where, text in _texts(request, path):
        names = list(dict.fromkeys(_PLACEHOLDER.findall(text)))
        if names:
            more = " and others" * (len(names) > MAX_VIOLATIONS)
            listed = ", ".join(names[:MAX_VIOLATIONS]) + more
            yield where, f"the placeholder {listed} was not replaced by the scheduler: define the parameter"


def _field_violations(data: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    for name, value in data.items():
        if name in _REFUSED:
            if value not in (None, ""):
                yield name, f"must stay empty: configure the worker's {_REFUSED[name]} or its AWS default chain instead"
        elif name not in _KNOWN and name not in _STRUCTURAL:
            meant = nearest(name, {REQUEST, _COMPLETED_WITH_FAILURES})
            hint = f"did you mean {meant}?" if meant else f"known are {REQUEST} and {_COMPLETED_WITH_FAILURES}"
            yield name, f"is not a field of a SAGEMAKER task; {hint}"
    given = [name for name in _REQUEST_SPELLINGS if name in data]
    if not given:
        yield REQUEST, "is missing: the JSON of a StartPipelineExecution request"
    elif len(given) > 1:
        yield given[1], f"is the same as {given[0]}: give one of them"


def _parse_json(text: str) -> object:
    if not text.strip():
        raise InvalidTask({REQUEST: "is empty: the JSON of a StartPipelineExecution request"})
    try:
        request: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(request, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidTask({REQUEST: f"is not valid JSON at {where}: {error.msg}"}) from None
    except UnicodeEncodeError:
        raise InvalidTask({REQUEST: "has a \\u escape that is half of a character"}) from None
    except ValueError:
        raise InvalidTask({REQUEST: "has a number with too many digits"}) from None
    return request


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise InvalidTask({REQUEST: f"has the key {twice[:100]!r} more than once in one object"})
    return content


def _refuse_constant(name: str) -> object:
    raise InvalidTask({REQUEST: f"is not valid JSON: {name} is not a JSON number"})


def _texts(value: JsonValue, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield path, name
            yield from _texts(member, f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")
