"""The expressions of pipeline definitions: ``{"Get": ...}``, ``{"Std:Join": ...}``, ``{"Std:JsonGet": ...}``.

What a step would produce at run time is not known to the simulator unless its context says so; such an expression
evaluates to :data:`UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from remora_sagemaker.simulator.shapes import is_array, is_object

UNKNOWN = object()
"""The value of an expression that depends on what a job would have computed."""

Lookup = Callable[[str], object]
"""Returns the value of a reference such as ``Parameters.ModelKind``, or :data:`UNKNOWN`."""


def references(value: object) -> Iterator[str]:
    """Yield every reference in a value: ``Steps.Train.ModelArtifacts.S3ModelArtifacts``, ``Parameters.ModelKind``."""
    if is_object(value):
        target = value.get("Get")
        if len(value) == 1 and isinstance(target, str):
            yield target
            return
        for field in value.values():
            yield from references(field)
    elif is_array(value):
        for item in value:
            yield from references(item)


def evaluate(value: object, lookup: Lookup) -> Any:  # noqa: ANN401 -- any JSON value
    """Return a value with its expressions replaced by what they stand for."""
    if is_array(value):
        return [evaluate(item, lookup) for item in value]
    if not is_object(value):
        return value
    match list(value.items()):
        case [("Get", str(target))]:
            return lookup(target)
        case [("Std:Join", join)] if is_object(join) and is_array(join.get("Values")):
            values = evaluate(join["Values"], lookup)
            return UNKNOWN if UNKNOWN in values else str(join.get("On", "")).join(map(str, values))
        case [("Std:JsonGet", _)]:
            return UNKNOWN
        case _:
            return {name: evaluate(field, lookup) for name, field in value.items()}


def without_unknown(value: object) -> Any:  # noqa: ANN401 -- any JSON value
    """Return a value without the members and items that are :data:`UNKNOWN`."""
    if is_object(value):
        return {name: without_unknown(field) for name, field in value.items() if field is not UNKNOWN}
    if is_array(value):
        return [without_unknown(item) for item in value if item is not UNKNOWN]
    return value
