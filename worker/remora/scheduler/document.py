"""A YAML document as plain values that remember their lines.

Plain scalars follow YAML 1.2 as pydolphinscheduler's own reader does: ``flag: NO`` is the text NO, and a date is text.
A number with leading zeros is text too, because it is a name more often than a number. What JSON cannot say (tags,
keys that are not text) is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml
from pydantic import JsonValue

Path: TypeAlias = tuple[str | int, ...]

_MOST_NODES = 200_000
"""Aliases let a short text stand for a huge document; so many nodes are read at most."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,300})(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?")
_WORDS: Mapping[str, JsonValue] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


class MalformedDocument(Exception):
    """The text is no document of the kind we read. The message is for people."""

    def __init__(self, message: str, *, line: int | None = None, path: Path = ()) -> None:
        """Take what is wrong, the line from 1, and the path where there is one."""
        super().__init__(message)
        self.line = line
        self.path = path


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What a text says, and on which lines."""

    value: JsonValue
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int | None:
        """Return the line, from 1, of the value at a path, or of the nearest one around it."""
        around = (path[:length] for length in range(len(path), -1, -1))
        return next((self.lines[part] for part in around if part in self.lines), None)


def read(text: str) -> Document:
    """Read one YAML document. An empty text is the value None.

    Raises:
        MalformedDocument: it is not well-formed, holds several documents, or says what JSON cannot.
    """
    reader = _Reader()
    try:
        # The base loader makes nodes without guessing types; compiled loaders overflow the stack on deep nesting.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        value = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except yaml.reader.ReaderError as error:
        message = f"has a character that YAML does not allow: {error.character:#x}"
        raise MalformedDocument(message, line=text.count("\n", 0, error.position) + 1) from None
    except RecursionError:
        raise MalformedDocument("is nested too deeply") from None
    return Document(value=value, lines=reader.lines)


def text_of(path: Path) -> str:
    """Return a path as people write it, for example ``tasks[2].deps[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


class _Reader:
    """Turns nodes into values."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self._nodes = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> JsonValue:
        line = node.start_mark.line + 1
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise MalformedDocument(f"stands for more than {_MOST_NODES} values", line=line, path=path)
        if node.tag not in _TAGS:
            raise MalformedDocument(f"has the tag {node.tag}; only plain values are read", line=line, path=path)
        if id(node) in self._open:
            raise MalformedDocument("contains itself by an alias", line=line, path=path)
        self.lines[path] = line
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.value(part, (*path, index)) for index, part in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, JsonValue]:
        merged: dict[str, JsonValue] = {}
        own: dict[str, JsonValue] = {}
        for key_node, value_node in node.value:
            key, line = _key(key_node, path), key_node.start_mark.line + 1
            if key in own:
                raise MalformedDocument(f"has {key!r} twice", line=line, path=path)
            if key == "<<" and key_node.style is None:
                for part in _merged(value_node):
                    value = self.value(part, path)
                    if not isinstance(value, dict):
                        raise MalformedDocument("merges what is not a mapping", line=line, path=path)
                    merged = {**value, **merged}
                continue
            own[key] = self.value(value_node, (*path, key))
            self.lines[*path, key] = line
        return {**merged, **own}


def _key(node: yaml.Node, path: Path) -> str:
    if isinstance(node, yaml.ScalarNode):
        return _text(node)
    raise MalformedDocument("has a key that is not text", line=node.start_mark.line + 1, path=path)


def _merged(node: yaml.Node) -> Iterator[yaml.Node]:
    yield from node.value if isinstance(node, yaml.SequenceNode) else [node]


def _text(node: yaml.ScalarNode) -> str:
    text = str(node.value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedDocument("has half a character (a lone surrogate)", line=node.start_mark.line + 1) from None
    return text


def _scalar(node: yaml.ScalarNode) -> JsonValue:
    text = _text(node)
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    value = json.loads(text) if _NUMBER.fullmatch(text) else text
    return text if value in (math.inf, -math.inf) else value


def _syntax_error(error: yaml.MarkedYAMLError) -> MalformedDocument:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "is not YAML"
    if "'\\t'" in problem:
        problem = "a tab cannot indent YAML; use spaces"
    if "another document" in problem:
        problem = "another document begins here; a file holds one workflow"
    return MalformedDocument(problem, line=None if mark is None else mark.line + 1)
