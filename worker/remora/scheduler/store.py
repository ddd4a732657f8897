"""The scheduler's memory: runs and their tasks in one SQLite file.

A run is one row and each of its tasks another, written whole when it changed and all in one transaction, so that
``kill -9`` at any instant leaves every run as it was before or after a change.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from remora.database import Connection, Database
from remora.scheduler.state import Node, Run
from remora.scheduler.workflow import Workflow

_MIGRATIONS = (
    """
    CREATE TABLE run (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of submission
        run_id      TEXT NOT NULL UNIQUE,
        nonce       TEXT NOT NULL,
        source      TEXT NOT NULL,                      -- the DAG file, to know a repeated submission by
        workflow    TEXT NOT NULL,                      -- remora.scheduler.workflow.Workflow
        parameters  TEXT NOT NULL,                      -- start parameters
        created_at  REAL NOT NULL,
        version     INTEGER NOT NULL,
        cancelled   TEXT,
        finished_at REAL
    ) STRICT;
    CREATE INDEX run_unfinished ON run (id) WHERE finished_at IS NULL;
    CREATE INDEX run_finished ON run (finished_at) WHERE finished_at IS NOT NULL;
    CREATE TABLE node (
        run  INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
        name TEXT    NOT NULL,
        node TEXT    NOT NULL,                          -- remora.scheduler.state.Node
        PRIMARY KEY (run, name)
    ) STRICT, WITHOUT ROWID;
    """,
)
_COLUMNS = "id, run_id, nonce, workflow, parameters, created_at, version, cancelled, finished_at"

_WORKFLOW = TypeAdapter(Workflow)
_PARAMETERS = TypeAdapter(dict[str, str])
_NODE = TypeAdapter(Node)


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What a run was made of."""

    source: str
    parameters: dict[str, str]


class Store:
    """The file while it is open."""

    def __init__(self, database: Database) -> None:
        """Use :meth:`open`."""
        self._database = database

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: Path) -> AsyncGenerator[Store]:
        """Open or create the file. Raises as :meth:`remora.database.Database.open`."""
        async with Database.open(path, migrations=_MIGRATIONS) as database:
            yield cls(database)

    async def insert(self, run: Run, source: str) -> bool:
        """Write a new run; return False, and write nothing, where the run id is taken."""
        workflow = _WORKFLOW.dump_json(run.workflow).decode()
        parameters = _PARAMETERS.dump_json(dict(run.parameters)).decode()

        def insert(connection: Connection) -> bool:
            cursor = connection.execute(
                "INSERT INTO run (run_id, nonce, source, workflow, parameters, created_at, version)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO NOTHING",
                (run.run_id, run.nonce, source, workflow, parameters, run.created_at, run.version),
            )
            if cursor.rowcount:
                _write(connection, run, list(run.nodes))
            return bool(cursor.rowcount)

        return await self._database.write(insert)

    async def update(self, changes: Sequence[tuple[Run, Run]]) -> None:
        """Write each second run over the first, all of them or none.

        Raises:
            StorageUnavailable: the disk refuses; nothing was changed.
        """

        def update(connection: Connection) -> None:
            for before, after in changes:
                changed = [name for name, node in after.nodes.items() if node is not before.nodes[name]]
                _write(connection, after, changed)

        await self._database.write(update)

    async def unfinished(self) -> list[Run]:
        """Return every run that has not ended, in the order of submission."""
        return await self._database.read(lambda connection: _select(connection, "finished_at IS NULL ORDER BY id"))

    async def get(self, run_id: str) -> Run | None:
        """Return a run."""
        runs = await self._database.read(lambda connection: _select(connection, "run_id = ?", run_id))
        return runs[0] if runs else None

    async def latest(self, limit: int) -> list[Run]:
        """Return runs, newest first."""
        return await self._database.read(lambda connection: _select(connection, "TRUE ORDER BY id DESC LIMIT ?", limit))

    async def submission(self, run_id: str) -> Submission | None:
        """Return what a run was made of."""

        def read(connection: Connection) -> Submission | None:
            row = connection.execute("SELECT source, parameters FROM run WHERE run_id = ?", (run_id,)).fetchone()
            return Submission(source=row[0], parameters=_PARAMETERS.validate_json(row[1])) if row else None

        return await self._database.read(read)

    async def forget(self, finished_before: float, limit: int = 100) -> list[Run]:
        """Delete some runs that ended before a time and return them."""

        def forget(connection: Connection) -> list[Run]:
            runs = _select(connection, "finished_at < ? ORDER BY finished_at LIMIT ?", finished_before, limit)
            connection.executemany("DELETE FROM run WHERE run_id = ?", [(run.run_id,) for run in runs])
            return runs

        return await self._database.write(forget)


def _write(connection: Connection, run: Run, names: Sequence[str]) -> None:
    connection.execute(
        "UPDATE run SET version = ?, cancelled = ?, finished_at = ? WHERE run_id = ?",
        (run.version, run.cancelled, run.finished_at, run.run_id),
    )
    connection.executemany(
        "INSERT OR REPLACE INTO node (run, name, node) SELECT id, ?, ? FROM run WHERE run_id = ?",
        [(name, _NODE.dump_json(run.nodes[name]).decode(), run.run_id) for name in names],
    )


def _select(connection: Connection, condition: str, *values: str | float) -> list[Run]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM run WHERE {condition}", values).fetchall()  # noqa: S608 -- ours
    return [_run(connection, row) for row in rows]


def _run(connection: Connection, row: tuple[int, str, str, str, str, float, int, str | None, float | None]) -> Run:
    number, run_id, nonce, workflow_text, parameters, created_at, version, cancelled, finished_at = row
    workflow = _WORKFLOW.validate_json(workflow_text)
    nodes = dict(connection.execute("SELECT name, node FROM node WHERE run = ?", (number,)).fetchall())
    return Run(
        run_id=run_id,
        nonce=nonce,
        workflow=workflow,
        created_at=created_at,
        nodes={name: _NODE.validate_json(nodes[name]) for name in workflow.tasks},
        parameters=_PARAMETERS.validate_json(parameters),
        version=version,
        cancelled=cancelled,
        finished_at=finished_at,
    )
