"""The expressions of the pipeline definition language: ``{"Get": ...}``, ``{"Std:Join": ...}``, conditions.

What a step would produce at run time is not known to the simulator unless its context says so; such an expression
evaluates to :data:`UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

UNKNOWN = object()
"""The value of an expression that depends on what a job would have computed."""

Lookup = Callable[[str], object]
"""Returns the value of a reference such as ``Parameters.ModelKind``, or :data:`UNKNOWN`."""


def references(value: object) -> Iterator[str]:
    """Yield every reference in a value: ``Steps.Train.ModelArtifacts.S3ModelArtifacts``, ``Parameters.ModelKind``."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        target = fields.get("Get")
        if len(fields) == 1 and isinstance(target, str):
            yield target
            return
        for field in fields.values():
            yield from references(field)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from references(item)


def evaluate(value: object, lookup: Lookup) -> Any:  # noqa: ANN401 -- any JSON value
    """Return a value with its expressions replaced by what they stand for."""
    if isinstance(value, list):
        return [evaluate(item, lookup) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    match fields:
        case {"Get": str(target)} if len(fields) == 1:
            return lookup(target)
        case {"Std:Join": {"Values": list(parts), **rest}} if len(fields) == 1:
            values = [evaluate(part, lookup) for part in cast("list[Any]", parts)]
            return UNKNOWN if UNKNOWN in values else str(rest.get("On", "")).join(map(str, values))
        case {"Std:JsonGet": _} if len(fields) == 1:
            return UNKNOWN
        case _:
            return {name: evaluate(field, lookup) for name, field in fields.items()}


def without_unknown(value: object) -> Any:  # noqa: ANN401 -- any JSON value
    """Return a value without the members and items that are :data:`UNKNOWN`."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: without_unknown(field) for name, field in fields.items() if field is not UNKNOWN}
    if isinstance(value, list):
        return [without_unknown(item) for item in cast("list[Any]", value) if item is not UNKNOWN]
    return value


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "Equals": lambda left, right: left == right,
    "GreaterThan": lambda left, right: left > right,
    "GreaterThanOrEqualTo": lambda left, right: left >= right,
    "LessThan": lambda left, right: left < right,
    "LessThanOrEqualTo": lambda left, right: left <= right,
}

CONDITION_TYPES = frozenset({*_COMPARISONS, "In", "Not", "Or"})


def holds(condition: Mapping[str, Any], lookup: Lookup) -> bool | None:
    """Return whether a condition holds; None when that depends on what a job would have computed.

    Raises:
        TypeError: two values cannot be compared.
    """
    match condition:
        case {"Type": "Not", "Expression": inner}:
            outcome = holds(inner, lookup)
            return None if outcome is None else not outcome
        case {"Type": "Or", "Conditions": list(inner)}:
            return _any([holds(each, lookup) for each in cast("list[Any]", inner)])
        case {"Type": "In", "QueryValue": query, "Values": list(values)}:
            wanted = evaluate(query, lookup)
            found = [evaluate(each, lookup) for each in cast("list[Any]", values)]
            return None if UNKNOWN in (wanted, *found) else wanted in found
        case {"Type": str(kind), "LeftValue": left, "RightValue": right} if kind in _COMPARISONS:
            left, right = evaluate(left, lookup), evaluate(right, lookup)
            return None if UNKNOWN in (left, right) else _COMPARISONS[kind](left, right)
        case _:
            return None


def _any(outcomes: list[bool | None]) -> bool | None:
    if True in outcomes:
        return True
    return None if None in outcomes else False


def all_hold(conditions: list[Mapping[str, Any]], lookup: Lookup) -> bool | None:
    """Return whether every condition holds; None when that is not known."""
    outcomes = [holds(each, lookup) for each in conditions]
    if False in outcomes:
        return False
    return None if None in outcomes else True
