"""Placeholders in the text of a task: ``${name}`` and ``$[yyyyMMdd]``, as DolphinScheduler's workers expand them.

``${name}`` may nest (``${model_${stage}}``), values may hold placeholders of their own, and a name that nobody knows
is left as it is. Where the text is JSON, a value inside a string is escaped and one outside is inserted as it is:
``{"Name": "${n}", "Count": ${n}}`` works with both, and no value can break out of its string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import JsonValue

from remora.task import MAX_JSON_BYTES

_TOKEN = re.compile(r"\$\{|\$\[[^$\[\]]+\]")
_JSON_TOKEN = re.compile(r'\\.|"|\$\{|\$\[[^$\[\]]+\]', re.DOTALL)
_BRACE = re.compile(r"\$\{|\}")

_DAYS = re.compile(r"(.*)([+-])([0-9]{1,5})")
_FORMAT_TOKENS = {
    "yyyy": "%Y",
    "yy": "%y",
    "MM": "%m",
    "dd": "%d",
    "HH": "%H",
    "mm": "%M",
    "ss": "%S",
    "'T'": "T",
}
_FORMAT_TOKEN = re.compile("|".join(_FORMAT_TOKENS))
_FORMAT = re.compile(rf"(?:{_FORMAT_TOKEN.pattern}|[-/:. _])+")

_MOST_EXPANSIONS = 10_000
"""Of one text: values that name each other can ask for endlessly many."""

_LONGEST_PLACEHOLDER = 1024
"""Characters. A brace that closes later closes something else."""


class UnresolvableText(Exception):
    """A text cannot be expanded. The message names the placeholder and says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Names and values of one priority."""

    values: Mapping[str, str]
    literal: bool = False
    """Whether placeholders inside the values are just text, as in what a job reported."""


class Expander:
    """Expands texts with the same names and the same time."""

    def __init__(
        self,
        layers: Sequence[Layer],
        now: datetime,
        otherwise: Callable[[str], str | None] = lambda name: None,  # noqa: ARG005 -- the signature of what is passed
    ) -> None:
        """Take layers, highest priority first, the base time, and who is asked for names that no layer has."""
        self._layers = layers
        self._now = now
        self._otherwise = otherwise
        self._open: list[tuple[str, int]] = []
        self._left = _MOST_EXPANSIONS

    def expand(self, text: str, *, is_json: bool = False) -> str:
        """Return the text with every known placeholder replaced.

        Raises:
            UnresolvableText: values name each other in a circle, or the result is longer than parameters may be.
        """
        self._left = _MOST_EXPANSIONS
        try:
            return self._expand(text, is_json=is_json)
        except RecursionError:
            raise UnresolvableText("placeholders are nested too deeply") from None

    def expand_value(self, value: JsonValue) -> JsonValue:
        """Return a JSON value with the placeholders in its texts replaced; each text stays a text."""
        if isinstance(value, str):
            return self.expand(value)
        if isinstance(value, list):
            return [self.expand_value(part) for part in value]
        if isinstance(value, dict):
            return {name: self.expand_value(part) for name, part in value.items()}
        return value

    def _expand(self, text: str, *, is_json: bool = False) -> str:
        parts: list[str] = []
        length = end = 0
        in_string = False
        for match, stop in _tokens(text, _JSON_TOKEN if is_json else _TOKEN):
            found = text[match.start() : stop]
            in_string ^= found == '"'
            value = self._value(found) if found[0] == "$" else None
            if value is None:
                value = found
            elif in_string:
                value = json.dumps(value, ensure_ascii=False)[1:-1]
            parts += text[end : match.start()], value
            end = stop
            length += len(value)
            if length > MAX_JSON_BYTES:
                raise UnresolvableText(f"the expanded text is longer than {MAX_JSON_BYTES} bytes")
        parts.append(text[end:])
        return "".join(parts)

    def _value(self, placeholder: str) -> str | None:
        self._left -= 1
        if self._left < 0:
            raise UnresolvableText(f"{placeholder}: more than {_MOST_EXPANSIONS} placeholders are to be expanded")
        if placeholder.startswith("$["):
            return formatted_time(placeholder[2:-1], self._now)
        if not placeholder.endswith("}"):  # never closed
            return None
        return self._lookup(self._expand(placeholder[2:-1]))

    def _lookup(self, name: str) -> str | None:
        having = [index for index, layer in enumerate(self._layers) if name in layer.values]
        if not having:
            return self._otherwise(name)
        # A value may name what it hides: local `n: ${n}` is the global n.
        for index in having:
            if (name, index) not in self._open:
                break
        else:
            circle = " -> ".join(f"${{{part}}}" for part, _ in [*self._open, (name, 0)])
            raise UnresolvableText(f"{circle}: these parameters name each other in a circle")
        layer = self._layers[index]
        if layer.literal:
            return layer.values[name]
        self._open.append((name, index))
        try:
            return self._expand(layer.values[name])
        finally:
            self._open.pop()


def names(text: str) -> Iterator[str]:
    """Yield the names in a text, without those that other placeholders are part of."""
    for match, stop in _tokens(text, _TOKEN):
        name = text[match.end() : stop - 1]
        if match.group() == "${" and stop > match.end() and "${" not in name:
            yield name


def unsupported_times(text: str, now: datetime) -> Iterator[str]:
    """Yield the time expressions in a text that are left as they are."""
    for match, _ in _tokens(text, _TOKEN):
        found = match.group()
        # `$['x']` and `$[0]` are JSONPath.
        if found.startswith("$[") and found[2].isalpha() and formatted_time(found[2:-1], now) is None:
            yield found


def formatted_time(expression: str, now: datetime) -> str | None:
    """Return the time in a pattern of java.time, ``+N`` or ``-N`` days away; None for other expressions."""
    days = 0
    if (match := _DAYS.fullmatch(expression)) is not None:
        expression = match[1]
        days = int(match[2] + match[3])
    if not any(letter.isalpha() for letter in expression) or _FORMAT.fullmatch(expression) is None:
        return None
    try:
        moment = now + timedelta(days=days)
    except OverflowError:
        return None
    return moment.strftime(_FORMAT_TOKEN.sub(lambda match: _FORMAT_TOKENS[match[0]], expression))


def as_text(value: JsonValue) -> str:
    """Return a value as it stands in a text: texts as they are, nothing as nothing, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tokens(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[re.Match[str], int]]:
    """Yield each token and where it ends; a ``${`` reaches to its own brace."""
    position = 0
    while (match := pattern.search(text, position)) is not None:
        position = _closing(text, match.end()) if match.group() == "${" else match.end()
        yield match, position


def _closing(text: str, start: int) -> int:
    """Return the position after the brace that closes the one before `start`; `start` where there is none."""
    depth = 1
    for match in _BRACE.finditer(text, start, start + _LONGEST_PLACEHOLDER):
        depth += 1 if match.group() == "${" else -1
        if depth == 0:
            return match.end()
    return start
