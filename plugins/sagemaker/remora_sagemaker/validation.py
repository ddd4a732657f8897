"""Requests checked without AWS: botocore's model of an operation compiled into a function.

The function gives every problem with the path of the field and words for its author. It is at most as strict as AWS
was when the installed SDK was made, so that it does not refuse what AWS would take. On a good request it builds no
path and no message, which keeps it cheap enough for thousands of requests a second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from botocore.model import ServiceModel, Shape

MAX_VIOLATIONS = 20
"""A request that is wrong in more places is described by the first ones."""

_MAX_NAME = 100
"""Characters of a name that a path repeats."""

Message = str | Callable[[], str]
"""Words for the author; a function where they are dear to find and may not be needed."""
Problems = Sequence[tuple[str, Message]]
"""(path below the value, message), for example ``(".PipelineParameters[0].Value", "must be text, ...")``."""
Check = Callable[[object], Problems]

_FINE: Problems = ()


class RequestValidator:
    """Checks requests of the operations of one service. Thread-safe once an operation was compiled."""

    def __init__(self, model: ServiceModel) -> None:
        """Take botocore's model. An operation is compiled at its first use."""
        self._model = model
        self._operations: dict[str, Check] = {}
        self._shapes: dict[str, Check] = {}

    def violations(self, operation: str, request: object, path: str) -> dict[str, str]:
        """Return a message for each wrong path of the request; none when it is fine.

        Raises:
            OperationNotFoundError: botocore's, the service has no such operation.
        """
        check = self._operations.get(operation)
        if check is None:
            shape = self._model.operation_model(operation).input_shape
            check = self._operations[operation] = self._compile(shape) if shape else _structure({}, (), "")
        return _collect(check(request), path)

    def _compile(self, shape: Shape) -> Check:
        known = self._shapes.get(shape.name)
        if known is not None:
            return known

        # A shape that contains itself meets this stand-in while it is being compiled.
        def later(value: object) -> Problems:
            return self._shapes[shape.name](value)

        self._shapes[shape.name] = later
        check = self._shapes[shape.name] = self._build(shape)
        return check

    def _build(self, shape: Any) -> Check:  # noqa: ANN401 -- botocore's shapes differ by kind
        if shape.type_name == "structure" and not shape.is_document_type:
            members = {name: self._compile(member) for name, member in shape.members.items()}
            return _structure(members, _required(shape), _hints(shape))
        if shape.type_name == "list":
            return _list(self._compile(shape.member), shape.metadata)
        if shape.type_name == "map":
            return _map(self._compile(shape.key), self._compile(shape.value), shape.metadata)
        if shape.type_name == "string":
            return _string(shape.metadata, shape.enum)
        # Documents take anything; timestamps and blobs have more than one form: botocore decides.
        make = _SCALARS.get(shape.type_name)
        return make(shape.metadata) if make else _anything


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    normal = name.lower().replace("_", "").replace("-", "")
    found = difflib.get_close_matches(normal, by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def _collect(problems: Problems, path: str) -> dict[str, str]:
    if not problems:
        return {}
    messages: dict[str, str] = {}
    for below, words in problems[:MAX_VIOLATIONS]:
        at = path + below
        message = words if isinstance(words, str) else words()
        messages[at] = f"{messages[at]}; {message}" if at in messages else message
    if len(problems) > MAX_VIOLATIONS:
        more = f"and {len(problems) - MAX_VIOLATIONS} more problems"
        messages[path] = f"{messages[path]}; {more}" if path in messages else more
    return messages


def _structure(members: Mapping[str, Check], required: Sequence[str], hints: str) -> Check:
    needed = frozenset(required)

    def check(value: object) -> Problems:
        if not is_object(value):
            return [("", f"must be an object, not {_kind(value)}")]
        problems: list[tuple[str, Message]] = []
        for name, member in value.items():
            check_member = members.get(name)
            if check_member is None:
                problems.append((f".{name[:_MAX_NAME]}", partial(_unknown, name, members, hints)))
            elif found := check_member(member):
                problems.extend((f".{name}{below}", message) for below, message in found)
        if not needed <= value.keys():
            problems.extend((f".{name}", "is missing") for name in required if name not in value)
        return problems

    return check


def _list(check_item: Check, limits: Mapping[str, Any]) -> Check:
    low, high = limits.get("min", 0), limits.get("max")

    def check(value: object) -> Problems:
        if not is_list(value):
            return [("", f"must be a list, not {_kind(value)}")]
        problems: list[tuple[str, Message]] = []
        size = len(value)
        if size < low or (high is not None and size > high):
            problems.append(("", f"has {size} items; {_range(low, high)} are allowed"))
        for index, item in enumerate(value):
            if found := check_item(item):
                problems.extend((f"[{index}]{below}", message) for below, message in found)
        return problems

    return check


def _map(check_key: Check, check_value: Check, limits: Mapping[str, Any]) -> Check:
    low, high = limits.get("min", 0), limits.get("max")

    def check(value: object) -> Problems:
        if not is_object(value):
            return [("", f"must be an object, not {_kind(value)}")]
        problems: list[tuple[str, Message]] = []
        size = len(value)
        if size < low or (high is not None and size > high):
            problems.append(("", f"has {size} entries; {_range(low, high)} are allowed"))
        for key, item in value.items():
            problems.extend((f".{key[:_MAX_NAME]}", f"the key {message}") for _, message in check_key(key))
            problems.extend((f".{key[:_MAX_NAME]}{below}", message) for below, message in check_value(item))
        return problems

    return check


def _string(limits: Mapping[str, Any], enum: Sequence[str]) -> Check:
    low, high = limits.get("min", 0), limits.get("max")
    limit = float("inf") if high is None else high
    matches = _pattern(limits.get("pattern"))
    allowed = frozenset(enum)

    def check(value: object) -> Problems:
        if type(value) is not str:
            quoted = type(value) in (int, float, bool)
            return [("", f"must be text, not {_kind(value)}" + ": put it in quotes" * quoted)]
        if not low <= len(value) <= limit:
            return [("", f"has {len(value)} characters; {_range(low, high)} are allowed")]
        if allowed and value not in allowed:
            meant = nearest(value, enum)
            return [("", f"must be one of {', '.join(enum)}" + (f"; did you mean {meant}?" if meant else ""))]
        if matches is not None and matches(value) is None:
            return [("", f"must match the pattern {limits['pattern']}")]
        return _FINE

    return check


def _number(kinds: type | tuple[type, ...], name: str, limits: Mapping[str, Any]) -> Check:
    low, high = limits.get("min"), limits.get("max")

    def check(value: object) -> Problems:
        if isinstance(value, bool) or not isinstance(value, kinds):
            unquoted = isinstance(value, str) and value.strip().isdecimal()
            instead = "" if isinstance(value, float) else f", not {_kind(value)}" + ": remove the quotes" * unquoted
            return [("", f"must be {name}{instead}")]
        number: Any = value
        if (low is not None and number < low) or (high is not None and number > high):
            return [("", f"must be {_range(low, high)}")]
        return _FINE

    return check


def _anything(value: object) -> Problems:
    del value
    return _FINE


def _boolean(value: object) -> Problems:
    return _FINE if isinstance(value, bool) else [("", f"must be true or false, not {_kind(value)}")]


_SCALARS: Mapping[str, Callable[[Mapping[str, Any]], Check]] = {
    "integer": lambda limits: _number(int, "a whole number", limits),
    "long": lambda limits: _number(int, "a whole number", limits),
    "float": lambda limits: _number((int, float), "a number", limits),
    "double": lambda limits: _number((int, float), "a number", limits),
    "boolean": lambda _: _boolean,
}


def _pattern(pattern: str | None) -> Callable[[str], object] | None:
    # The patterns are Java's and match whole values. A dot here matches newlines too: AWS may allow them.
    if pattern is None or pattern == ".*":
        return None
    try:
        return re.compile(pattern, re.ASCII | re.DOTALL).fullmatch
    except re.error:  # what Java knows and Python does not, such as \\p{L}
        return None


def _unknown(name: str, members: Iterable[str], hints: str) -> str:
    meant = nearest(name, members)
    return f"is not a field here; did you mean {meant}?" if meant else f"is not a field here; known are {hints}"


def _required(shape: Any) -> Sequence[str]:  # noqa: ANN401 -- a StructureShape
    # A missing idempotency token is filled in by whoever sends the request.
    return [name for name in shape.required_members if not shape.members[name].metadata.get("idempotencyToken")]


def _hints(shape: Any) -> str:  # noqa: ANN401 -- a StructureShape
    required = _required(shape)
    names = sorted(shape.members, key=lambda name: (name not in required, name))
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")  # noqa: PLR2004 -- enough for a message


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether this is a JSON object, of whatever."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether this is a JSON list, of whatever."""
    return isinstance(value, list)


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"{low} to {high}" if low else f"at most {high}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
