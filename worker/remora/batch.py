"""Work for one thread, done for many callers at once: what comes while a batch is under way makes the next one.

So the price of a batch, a commit or a change of threads, is paid once for all who wait at the same time, and a lone
caller waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

W = TypeVar("W")

_LARGEST = 1024


class Job(Generic[W]):
    """One caller's work, and what came of it."""

    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(self, work: W, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.loop = future.get_loop()
        self.result: Any = None
        self.error: BaseException | None = None

    def deliver(self) -> None:
        """Hand over the outcome, unless the caller has gone; the work is done all the same."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class BatchThread(Generic[W]):
    """A thread that does batches of jobs, in the order in which they came."""

    def __init__(self, name: str, do: Callable[[Sequence[Job[W]]], None]) -> None:
        """Take what does a batch: it sets each job's result or error, and raises nothing."""
        self._do = do
        self._queue: queue.SimpleQueue[Job[W] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def done(self, work: W) -> Any:  # noqa: ANN401 -- whatever the work gives
        """Return the work's result, or raise its error."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put(Job(work, future))
        return await future

    def close(self) -> None:
        """Do what waits, then end. Blocks until then."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            self._do(batch)
            for loop in {job.loop for job in batch}:
                # A loop that was closed has nobody left who waits.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_deliver, [job for job in batch if job.loop is loop])

    def _take(self) -> list[Job[W]]:
        """Wait for a job, and take with it all that came meanwhile. Empty at the end."""
        first = self._queue.get()
        if first is None:
            return []
        batch = [first]
        while len(batch) < _LARGEST:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)  # the end comes after this batch
                break
            batch.append(job)
        return batch


def _deliver(jobs: Sequence[Job[Any]]) -> None:
    for job in jobs:
        job.deliver()
