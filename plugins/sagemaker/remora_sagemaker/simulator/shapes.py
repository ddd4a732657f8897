"""JSON values held against the shapes of botocore's service model.

botocore itself checks types, required members and minima, and only in the client. The service also checks maxima,
patterns and enumerations; this module does all of them, with the wording of AWS, in checks that are compiled once
per shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from botocore.model import ListShape, MapShape, Shape, StructureShape

JsonObject = dict[str, Any]


def is_object(value: object) -> TypeGuard[JsonObject]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether a JSON value is an array."""
    return isinstance(value, list)


class Unmodelled(str):
    """A string that deliberately is not in the model, such as a status of the future. Its content is not checked."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """One value that breaks one rule."""

    path: str
    """In the notation of AWS: ``pipelineParameters.1.member.name``."""
    value: object
    rule: str
    """What the value had to be."""
    is_type: bool = False
    """The value has another type altogether; AWS calls that a serialization error."""

    def __str__(self) -> str:
        if self.is_type:
            place = f" at '{self.path}'" if self.path else ""
            return f"{_kind(self.value)}{place} can not be converted to {self.rule}"
        shown = "null" if self.value is None else f"'{self.value}'"
        return f"Value {shown} at '{self.path}' failed to satisfy constraint: {self.rule}"


Check = Callable[[Any, str, list[Violation]], None]
"""Takes a value and its path, and adds what is wrong with it to the list."""


class ShapeChecks:
    """Checks for shapes, compiled when first asked for.

    A closed check refuses members that the model does not know (for answers: there they are a defect of ours), an
    open one ignores them, as the service does with requests.
    """

    def __init__(self, *, closed: bool) -> None:
        """Start with nothing compiled."""
        self._closed = closed
        self._compiled: dict[str, Check] = {}

    def of(self, shape: Shape) -> Check:
        """Return the check of a shape. Shapes may contain themselves."""
        known = self._compiled.get(shape.name)
        if known is not None:
            return known
        if isinstance(shape, StructureShape):
            return self._structure(shape)
        if isinstance(shape, ListShape):
            return self._list(shape)
        if isinstance(shape, MapShape):
            return self._map(shape)
        check = _scalar(shape)
        self._compiled[shape.name] = check
        return check

    def _structure(self, shape: StructureShape) -> Check:
        members: dict[str, tuple[str, Check]] = {}
        required = [(name, _camel(name)) for name in shape.required_members]
        closed = self._closed

        def check(value: Any, path: str, found: list[Violation]) -> None:  # noqa: ANN401 -- any JSON value
            if not is_object(value):
                found.append(Violation(path, value, "a structure", is_type=True))
                return
            prefix = f"{path}." if path else ""
            for name, camel in required:
                if value.get(name) is None:
                    found.append(Violation(prefix + camel, None, "Member must not be null"))
            for name, field in value.items():
                member = members.get(name)
                if member is not None and field is not None:
                    member[1](field, prefix + member[0], found)
                elif member is None and closed:
                    found.append(Violation(prefix + name, field, "Member must be known to the model"))

        self._compiled[shape.name] = check
        members.update((name, (_camel(name), self.of(member))) for name, member in shape.members.items())
        return check

    def _list(self, shape: ListShape) -> Check:
        size = _bounds(shape.metadata, "length")
        element: list[Check] = []

        def check(value: Any, path: str, found: list[Violation]) -> None:  # noqa: ANN401 -- any JSON value
            if not is_array(value):
                found.append(Violation(path, value, "a list", is_type=True))
                return
            size(len(value), value, path, found)
            for index, item in enumerate(value, start=1):
                element[0](item, f"{path}.{index}.member", found)

        self._compiled[shape.name] = check
        element.append(self.of(shape.member))
        return check

    def _map(self, shape: MapShape) -> Check:
        size = _bounds(shape.metadata, "length")
        entry: list[Check] = []

        def check(value: Any, path: str, found: list[Violation]) -> None:  # noqa: ANN401 -- any JSON value
            if not is_object(value):
                found.append(Violation(path, value, "a map", is_type=True))
                return
            size(len(value), value, path, found)
            for key, item in value.items():
                entry[0](key, f"{path}.key", found)
                entry[1](item, f"{path}.{key}.member", found)

        self._compiled[shape.name] = check
        entry.extend((self.of(shape.key), self.of(shape.value)))
        return check


def _scalar(shape: Shape) -> Check:
    match shape.type_name:
        case "string":
            return _string(shape)
        case "boolean":
            return _typed(lambda value: isinstance(value, bool), "a Boolean", None)
        case "integer" | "long":
            return _typed(
                lambda value: isinstance(value, int) and not isinstance(value, bool),
                "an Integer",
                _bounds(shape.metadata, "value"),
            )
        case "float" | "double":
            return _typed(_is_number, "a Float", _bounds(shape.metadata, "value"))
        case "timestamp":
            return _typed(_is_number, "a Timestamp (seconds since 1970)", None)
        case "blob":
            return _typed(lambda value: isinstance(value, str), "a Blob", None)
        case other:
            raise NotImplementedError(f"the model has a shape of type {other}, which the simulator does not know")


def _string(shape: Shape) -> Check:
    length = _bounds(shape.metadata, "length")
    choices: list[str] = list(shape.metadata.get("enum", ()))
    allowed = frozenset(choices)
    pattern = _pattern(shape.metadata.get("pattern"))

    def check(value: Any, path: str, found: list[Violation]) -> None:  # noqa: ANN401 -- any JSON value
        if not isinstance(value, str):
            found.append(Violation(path, value, "a String", is_type=True))
            return
        if isinstance(value, Unmodelled):
            return
        length(len(value), value, path, found)
        if pattern is not None and pattern.fullmatch(value) is None:
            found.append(Violation(path, value, f"Member must satisfy regular expression pattern: {pattern.pattern}"))
        if allowed and value not in allowed:
            found.append(Violation(path, value, f"Member must satisfy enum value set: [{', '.join(choices)}]"))

    return check


def _typed(is_instance: Callable[[Any], bool], wanted: str, bounds: Bounds | None) -> Check:
    def check(value: Any, path: str, found: list[Violation]) -> None:  # noqa: ANN401 -- any JSON value
        if not is_instance(value):
            found.append(Violation(path, value, wanted, is_type=True))
        elif bounds is not None:
            bounds(value, value, path, found)

    return check


Bounds = Callable[[float, object, str, list[Violation]], None]


def _bounds(metadata: Mapping[str, Any], what: str) -> Bounds:
    """Return a check of a measure (a length or the value itself) against the shape's minimum and maximum."""
    low, high = metadata.get("min"), metadata.get("max")

    def check(measure: float, value: object, path: str, found: list[Violation]) -> None:
        if low is not None and measure < low:
            found.append(Violation(path, value, f"Member must have {what} greater than or equal to {low}"))
        if high is not None and measure > high:
            found.append(Violation(path, value, f"Member must have {what} less than or equal to {high}"))

    return check


def _pattern(text: str | None) -> re.Pattern[str] | None:
    """Compile a pattern of the model; a few are in a dialect that Python does not know and are not checked."""
    if text is None or text == ".*":
        return None
    try:
        return re.compile(text)
    except re.error:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]


def _kind(value: object) -> str:
    match value:
        case bool():
            return "BOOLEAN_VALUE"
        case str():
            return "STRING_VALUE"
        case int() | float():
            return "NUMBER_VALUE"
        case list():
            return "LIST_VALUE"
        case dict():
            return "STRUCTURE_VALUE"
        case _:
            return "NULL_VALUE"
