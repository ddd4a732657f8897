"""The conditions of Condition steps.

Each evaluates to True, False, or None: that depends on what a job would have computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_pascal

from remora_sagemaker.simulator.expressions import UNKNOWN, Lookup, evaluate

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "Equals": lambda left, right: left == right,
    "GreaterThan": lambda left, right: left > right,
    "GreaterThanOrEqualTo": lambda left, right: left >= right,
    "LessThan": lambda left, right: left < right,
    "LessThanOrEqualTo": lambda left, right: left <= right,
}


class _Condition(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_pascal)


class Comparison(_Condition):
    """Two values compared."""

    type: Literal["Equals", "GreaterThan", "GreaterThanOrEqualTo", "LessThan", "LessThanOrEqualTo"]
    left_value: Any
    right_value: Any

    def holds(self, lookup: Lookup) -> bool | None:
        """Return whether it holds. Raises TypeError for values that have no order."""
        left, right = evaluate(self.left_value, lookup), evaluate(self.right_value, lookup)
        return None if UNKNOWN in (left, right) else _COMPARISONS[self.type](left, right)


class In(_Condition):
    """A value among others."""

    type: Literal["In"]
    query_value: Any
    values: tuple[Any, ...]

    def holds(self, lookup: Lookup) -> bool | None:
        """Return whether it holds."""
        wanted = evaluate(self.query_value, lookup)
        values = [evaluate(value, lookup) for value in self.values]
        return None if UNKNOWN in (wanted, *values) else wanted in values


class Not(_Condition):
    """The opposite of another."""

    type: Literal["Not"]
    expression: Condition

    def holds(self, lookup: Lookup) -> bool | None:
        """Return whether it holds. Raises TypeError for values that have no order."""
        inner = self.expression.holds(lookup)
        return None if inner is None else not inner


class Or(_Condition):
    """At least one of some."""

    type: Literal["Or"]
    conditions: tuple[Condition, ...]

    def holds(self, lookup: Lookup) -> bool | None:
        """Return whether it holds. Raises TypeError for values that have no order."""
        inner = [condition.holds(lookup) for condition in self.conditions]
        if True in inner:
            return True
        return None if None in inner else False


Condition = Annotated[Comparison | In | Not | Or, Field(discriminator="type")]


def all_hold(conditions: Iterable[Condition], lookup: Lookup) -> bool | None:
    """Return whether every one holds. Raises TypeError for values that have no order."""
    inner = [condition.holds(lookup) for condition in conditions]
    if False in inner:
        return False
    return None if None in inner else True
