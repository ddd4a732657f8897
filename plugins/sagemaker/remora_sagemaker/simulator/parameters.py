"""Pipeline parameters: what was given, checked against what the definition declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remora_sagemaker.simulator.definition import Parameter
from remora_sagemaker.simulator.scenario import CONTROLS

Value = str | int | float | bool


def bind(declared: Mapping[str, Parameter], given: Sequence[Mapping[str, str]]) -> dict[str, Value]:
    """Return a value for each declared parameter, and for each control of the scenario that was given.

    Raises:
        ValueError: one is given twice, unknown, missing, empty, of the wrong type or not among the allowed values.
    """
    texts = {each["Name"]: each["Value"] for each in given}
    if len(texts) < len(given):
        raise ValueError("Each pipeline parameter may be given only once.")
    unknown = sorted(texts.keys() - declared.keys() - CONTROLS)
    if unknown:
        raise ValueError(f"Unknown pipeline parameters: [{', '.join(unknown)}]. {_known(declared)}")
    missing = sorted(
        name for name, parameter in declared.items() if parameter.default_value is None and name not in texts
    )
    if missing:
        raise ValueError(f"Pipeline parameters without a default value must be given: [{', '.join(missing)}].")
    values: dict[str, Value] = {name: text for name, text in texts.items() if name not in declared}
    for name, parameter in declared.items():
        default: Any = parameter.default_value
        values[name] = _convert(parameter, texts[name]) if name in texts else default
    return values


def _convert(parameter: Parameter, text: str) -> Value:
    if not text:
        # As SageMaker says it: aws/sagemaker-python-sdk issue 4016.
        raise ValueError(f'{parameter.name}: [string "" is too short (length: 0, required minimum: 1)]')
    value = _parse(parameter, text)
    if parameter.enum_values and value not in parameter.enum_values:
        allowed = ", ".join(map(str, parameter.enum_values))
        raise ValueError(f"The value '{text}' of the pipeline parameter {parameter.name} is not one of [{allowed}].")
    return value


def _parse(parameter: Parameter, text: str) -> Value:
    try:
        match parameter.type:
            case "Integer":
                return int(text)
            case "Float":
                return float(text)
            case "Boolean":
                return {"true": True, "false": False}[text.lower()]
            case _:
                return text
    except (ValueError, KeyError):
        raise ValueError(
            f"The value '{text}' of the pipeline parameter {parameter.name} is not of type {parameter.type}."
        ) from None


def _known(declared: Mapping[str, Parameter]) -> str:
    return f"The pipeline declares [{', '.join(declared)}]." if declared else "The pipeline declares none."
