"""Programs that are started for a while: their output in files, their unexpected death told, their end made sure."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from remora.cli.group import Failed
from remora.plugin import Clock

T = TypeVar("T")

_STOP_SECONDS = 10.0
"""How long a program may take to stop when it is asked to; then it is killed."""
_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_TAIL_LINES = 20


class Program:
    """One program, which may be killed and started again."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._environment = environment
        self._begin = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process, 0 before the first one."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start a process. It gets no signals of the terminal: who started it decides when it stops."""
        output = await asyncio.to_thread(self._log.open, "ab")
        with output:
            self._begin = output.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self._log.parent,
                env=self._environment,
                start_new_session=True,
            )

    async def said(self, look: Callable[[str], T | None], clock: Clock) -> T:
        """Wait for a line of the output of this process in which there is something to be found; return that.

        Raises:
            Failed: there is none within a minute.
        """
        deadline = clock.monotonic() + _READY_SECONDS
        while clock.monotonic() < deadline:
            for line in await self._lines():
                if (found := look(line)) is not None:
                    return found
            await clock.sleep(_LOOK_SECONDS)
        raise await self._failed(f"is not ready after {_READY_SECONDS:g} s")

    async def guard(self) -> None:
        """Wait for the process to end by itself.

        Raises:
            Failed: it did.
        """
        process = self._process
        assert process is not None, "it was started"
        code = await process.wait()
        if self._process is process:
            raise await self._failed(f"died with exit code {code}")

    async def kill(self) -> None:
        """End the process without a chance to say anything."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def stop(self) -> None:
        """Ask the process to stop, and kill it if it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _failed(self, what: str) -> Failed:
        tail = (await self._lines())[-_TAIL_LINES:]
        return Failed(f"the {self.name} {what}. Its last words:", *(f"  {line}" for line in tail))

    async def _lines(self) -> Sequence[str]:
        """Return the output of this process, not of the ones before it."""
        data = await asyncio.to_thread(self._log.read_bytes)
        return data[self._begin :].decode(errors="replace").splitlines()


class Programs:
    """The programs that run while the block runs."""

    def __init__(self, group: asyncio.TaskGroup, directory: Path, environment: Mapping[str, str]) -> None:
        self._group = group
        self._directory = directory
        self._environment = environment
        self._all: list[Program] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, directory: Path, environment: Mapping[str, str]) -> AsyncGenerator[Programs]:
        """Stop all programs at the end of the block, the latest first.

        Raises:
            Failed: one of them died; that ends the block.
        """
        try:
            async with asyncio.TaskGroup() as group:
                programs = cls(group, directory, environment)
                try:
                    yield programs
                finally:
                    for program in reversed(programs._all):
                        await program.stop()
        except BaseExceptionGroup as deaths:
            raise deaths.exceptions[0] from None

    async def start(self, name: str, *command: str) -> Program:
        """Start a program; its output is ``<name>.log`` in the directory."""
        program = Program(name, command, self._directory / f"{name}.log", self._environment)
        self._all.append(program)
        await self.restart(program)
        return program

    async def restart(self, program: Program) -> None:
        """Start a program again that was killed."""
        await program.start()
        self._group.create_task(program.guard(), name=f"guard {program.name}")
