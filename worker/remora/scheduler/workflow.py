"""A workflow: tasks, what each waits for, and what each hands to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

DEFAULT_GROUP = "default"
"""The worker group that every worker belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One task of a workflow. Times are in seconds."""

    name: str
    task_type: str
    """In upper case, as workers name it."""
    depends_on: tuple[str, ...] = ()
    parameters: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """Those of the task type, with placeholders."""
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Local parameters, with placeholders."""
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    """What later tasks know by a name of its own: the path in this task's outputs."""
    max_attempts: int = 1
    retry_interval: float = 60.0
    delay: float = 0.0
    """Between the end of the tasks before it and its start."""
    timeout: float | None = None
    """Of each attempt."""
    worker_group: str = DEFAULT_GROUP
    skipped: bool = False
    """Counts as a success when its turn comes, and never runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workflow:
    """Tasks that belong together. Every dependency is one of the tasks, and none is circular."""

    name: str
    parameters: Mapping[str, str]
    """Global parameters, with placeholders."""
    tasks: Mapping[str, TaskSpec]
    """In the order of the file."""
    timezone: str = "UTC"
    """Of time expressions."""
    notes: tuple[str, ...] = ()
    """What the file says and nobody heeds, for its author."""

    def ancestors(self, name: str) -> Iterator[TaskSpec]:
        """Yield every task that the named one waits for, directly or not; the nearest first."""
        seen: set[str] = set()
        level = self.tasks[name].depends_on
        while level:
            yield from (self.tasks[part] for part in level)
            seen.update(level)
            before = dict.fromkeys(part for current in level for part in self.tasks[current].depends_on)
            level = tuple(part for part in before if part not in seen)

    def output_named(self, placeholder: str) -> tuple[str, str] | None:
        """Read ``train.model.arn`` as the task ``train`` and the path ``model.arn``; None where no task fits."""
        parts = placeholder.split(".")
        for length in range(len(parts) - 1, 0, -1):
            if (name := ".".join(parts[:length])) in self.tasks:
                return name, ".".join(parts[length:])
        return None
