"""One log file for each task attempt, read by byte offset.

Lines look as DolphinScheduler's do: ``[INFO] 2026-11-20 10:00:00.123 +0000 - message``. Files are opened for each
batch and not kept open, so that 10,000 running tasks cost no file descriptors. What :meth:`TaskLogs.append` has
written is in the operating system's hands: it survives ``kill -9``, not the loss of power.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import urllib.parse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from remora.batch import BatchThread, Job
from remora.pace import Signal
from remora.plugin import Clock, TaskKey

T = TypeVar("T")

_LONGEST_LINE = 64 * 1024
_LONGEST_NAME = 200  # file systems allow 255 bytes


class TaskLogs:
    """The log files under one directory."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Take the directory, which is made when the first line is written."""
        self._directory = directory
        self._clock = clock
        # One thread: lines of one task stay in order, and the disk sees one writer.
        self._thread: BatchThread[Callable[[], Any]] = BatchThread("task logs", _do_each)
        self.grew = Signal()
        """Notified after every append."""

    def close(self) -> None:
        """Write what waits, then stop."""
        self._thread.close()

    async def append(self, key: TaskKey, lines: Sequence[str], *, level: str = "INFO") -> None:
        """Append lines, each stamped with the time. Line ends inside one make it several; 64 Ki characters are kept.

        Raises OSError where the disk refuses.
        """
        if not lines:
            return
        now = dt.datetime.fromtimestamp(self._clock.now(), dt.UTC)
        stamp = f"[{level}] {now:%Y-%m-%d %H:%M:%S}.{now.microsecond // 1000:03d} +0000 - "
        text = "".join(f"{stamp}{part[:_LONGEST_LINE]}\n" for line in lines for part in line.splitlines() or [""])
        await self._in_thread(self._write, self.path(key), text.encode(errors="replace"), None)
        self.grew.notify()

    async def append_at(self, key: TaskKey, offset: int, text: str) -> int:
        """Append text as it is if the log ends at the offset; return where it ends then."""
        end = await self._in_thread(self._write, self.path(key), text.encode(), offset)
        self.grew.notify()
        return end

    async def read(self, key: TaskKey, *, offset: int, limit: int) -> tuple[str, int]:
        """Return whole lines from a byte offset, and the byte after them. Empty at the end, or where there is no log.

        At most so many bytes; a line that is longer comes in pieces, cut between characters.
        """
        data = await self._in_thread(self._read, self.path(key), offset, limit)
        return data.decode(errors="replace"), offset + len(data)

    async def size(self, key: TaskKey) -> int:
        """Return the bytes of a log, 0 where there is none."""
        return await self._in_thread(_size, self.path(key))

    async def remove(self, keys: Sequence[TaskKey]) -> None:
        """Remove logs, and their directories when they are empty."""
        await self._in_thread(self._remove, [self.path(key) for key in keys])

    def path(self, key: TaskKey) -> Path:
        """Return the file of a task. Any task id gives a safe name; long ones are cut and told apart by a digest."""
        name = urllib.parse.quote(key.task_id, safe="@+=,: ")
        # "." and ".." are names of directories, and quote() leaves them alone. "%" and "%~" it gives to no other id.
        if name.strip(".") == "":
            name = name.replace(".", "%2E") or "%"
        if len(name) > _LONGEST_NAME:
            name = f"{name[:150]}%~{hashlib.sha256(key.task_id.encode()).hexdigest()[:32]}"
        return self._directory / name / f"{key.attempt}.log"

    @staticmethod
    def _write(path: Path, data: bytes, offset: int | None) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            handle = os.open(path, flags, 0o640)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, flags, 0o640)
        try:
            end = os.lseek(handle, 0, os.SEEK_END)
            if offset is not None and offset != end:
                return end
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(handle, view) :]
            except OSError:
                # Half a line would stay hidden, and keep who follows the log waiting for its other half.
                os.ftruncate(handle, end)
                raise
            return end + len(data)
        finally:
            os.close(handle)

    @staticmethod
    def _read(path: Path, offset: int, limit: int) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(limit)
        except FileNotFoundError:
            return b""
        if len(data) < limit:
            # The last line may still be on its way from another process.
            return data[: data.rfind(b"\n") + 1]
        end = data.rfind(b"\n") + 1
        if end:
            return data[:end]
        # Cut between characters; never down to nothing, so that readers advance.
        return data.decode(errors="ignore").encode() or data

    @staticmethod
    def _remove(paths: Sequence[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        for parent in {path.parent for path in paths}:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        result: T = await self._thread.done(partial(function, *arguments))
        return result


def _do_each(jobs: Sequence[Job[Callable[[], Any]]]) -> None:
    for job in jobs:
        try:
            job.result = job.work()
        except Exception as error:  # noqa: BLE001 -- it belongs to the caller who waits for it
            job.error = error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
