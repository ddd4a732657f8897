"""The few numbers that tell whether the worker is well, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """One worker's numbers, in a registry of their own."""

    def __init__(self) -> None:
        """Start at nought."""
        self.registry = CollectorRegistry()
        self.accepted = Counter("remora_tasks_accepted", "Tasks taken.", ["task_type"], registry=self.registry)
        self.finished = Counter(
            "remora_tasks_finished", "Tasks that reached a final state.", ["task_type", "state"], registry=self.registry
        )
        self.active = Gauge("remora_tasks_active", "Unfinished tasks.", registry=self.registry)
        self.submit_seconds = Histogram(
            "remora_submit_seconds",
            "From acceptance to a remote job that is known to exist.",
            ["task_type"],
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600, 3600),
            registry=self.registry,
        )
        self.observe_seconds = Histogram(
            "remora_observe_seconds", "One look at a batch of jobs.", ["task_type"], registry=self.registry
        )
        self.errors = Counter(
            "remora_remote_errors",
            "Errors of remote services by who has to act.",
            ["task_type", "kind"],
            registry=self.registry,
        )
