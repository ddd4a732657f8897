"""The worker's only memory: every task it was given, as it is now.

A record is written whole with each change and gets the next change number, so that "what changed since" is one
index scan and a reader that was away for long reads each record once. Parameters never change and stand beside it.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from remora.database import Connection, Database
from remora.door import ChangePage, TaskFilter, TaskPage
from remora.errors import IllegalTransition, InvalidRequest
from remora.pace import Signal, wait_for
from remora.plugin import Clock, TaskDefinition, TaskKey
from remora.task import TaskRecord

_MIGRATIONS = (
    """
    CREATE TABLE task (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance
        task_id     TEXT    NOT NULL,
        attempt     INTEGER NOT NULL,
        door        TEXT    NOT NULL,
        task_type   TEXT    NOT NULL,
        state       TEXT    NOT NULL,
        sequence    INTEGER NOT NULL,
        change      INTEGER NOT NULL UNIQUE,            -- the order of the latest change
        finished_at REAL,
        record      TEXT    NOT NULL,                   -- remora.task.TaskRecord
        definition  TEXT,                               -- remora.plugin.TaskDefinition; NULL for a tombstone
        UNIQUE (task_id, attempt)
    ) STRICT;
    CREATE INDEX task_unfinished ON task (id) WHERE finished_at IS NULL;
    CREATE INDEX task_finished ON task (finished_at) WHERE finished_at IS NOT NULL;
    CREATE TABLE note (
        door TEXT    NOT NULL,
        task INTEGER NOT NULL REFERENCES task (id) ON DELETE CASCADE,
        text TEXT    NOT NULL,
        PRIMARY KEY (door, task)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX note_task ON note (task);
    CREATE TABLE journal (
        id     TEXT    NOT NULL,
        change INTEGER NOT NULL                         -- at least that of every forgotten task
    ) STRICT;
    """,
)

_TOKEN = re.compile(r"[0-9]{1,18}")
"""A row's id as text; SQLite's integers have room for any 18 digits."""
_RECORD = TypeAdapter(TaskRecord)
_DEFINITION = TypeAdapter(TaskDefinition)


class Journal:
    """The journal file while it is open."""

    def __init__(self, database: Database, clock: Clock, *, journal_id: str, change: int) -> None:
        """Use :meth:`open`."""
        self._database = database
        self._clock = clock
        self._change = change
        self._grew = Signal()
        self.id = journal_id
        """Names this journal: another one after the data directory was lost."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: Path, clock: Clock) -> AsyncGenerator[Journal]:
        """Open or create the journal. Raises as :meth:`remora.database.Database.open`."""
        async with Database.open(path, migrations=_MIGRATIONS) as database:
            journal_id, change = await database.write(_identify)
            yield cls(database, clock, journal_id=journal_id, change=change)

    async def insert(self, record: TaskRecord, definition: TaskDefinition | None) -> TaskRecord:
        """Write a new task and return its record; where the key is taken, return the record that has it."""
        text = _RECORD.dump_json(record).decode()
        asked = None if definition is None else _DEFINITION.dump_json(definition).decode()

        def insert(connection: Connection) -> TaskRecord:
            cursor = connection.execute(
                "INSERT INTO task (task_id, attempt, door, task_type, state, sequence, change, finished_at, record,"
                " definition) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task_id, attempt) DO NOTHING",
                (
                    record.key.task_id,
                    record.key.attempt,
                    record.door,
                    record.task_type,
                    record.state,
                    record.sequence,
                    self._next_change(),
                    record.finished_at,
                    text,
                    asked,
                ),
            )
            if cursor.rowcount:
                return record
            return _required(_select(connection, record.key))

        written = await self._database.write(insert)
        self._grew.notify()
        return written

    async def update(self, record: TaskRecord) -> None:
        """Write the next state of a task.

        Raises:
            IllegalTransition: the record does not follow the one on disk. A defect.
            StorageUnavailable: nothing was changed.
        """
        text = _RECORD.dump_json(record).decode()

        def update(connection: Connection) -> None:
            cursor = connection.execute(
                "UPDATE task SET door = ?, state = ?, sequence = ?, change = ?, finished_at = ?, record = ?"
                " WHERE task_id = ? AND attempt = ? AND sequence = ?",
                (
                    record.door,
                    record.state,
                    record.sequence,
                    self._next_change(),
                    record.finished_at,
                    text,
                    record.key.task_id,
                    record.key.attempt,
                    record.sequence - 1,
                ),
            )
            if not cursor.rowcount:
                raise IllegalTransition(f"{record.key}: sequence {record.sequence} does not follow what is on disk")

        await self._database.write(update)
        self._grew.notify()

    async def get(self, key: TaskKey) -> TaskRecord | None:
        """Return a record, or None."""
        return await self._database.read(lambda connection: _select(connection, key))

    async def definition(self, key: TaskKey) -> TaskDefinition | None:
        """Return what was accepted; None for a tombstone or an unknown key."""

        def select(connection: Connection) -> TaskDefinition | None:
            query = "SELECT definition FROM task WHERE task_id = ? AND attempt = ?"
            row = connection.execute(query, _values(key)).fetchone()
            return None if row is None or row[0] is None else _DEFINITION.validate_json(row[0])

        return await self._database.read(select)

    async def unfinished(self) -> Sequence[TaskRecord]:
        """Return every task that is not final, oldest first: what a worker goes on with after a restart."""
        return await self._database.read(
            lambda connection: [
                _RECORD.validate_json(text)
                for (text,) in connection.execute("SELECT record FROM task WHERE finished_at IS NULL ORDER BY id")
            ]
        )

    async def list(self, chosen: TaskFilter, *, limit: int, token: str = "") -> TaskPage:
        """Return a page of records, oldest first. Raises InvalidRequest for a token that is not one of ours."""
        if token and not _TOKEN.fullmatch(token):
            raise InvalidRequest({"page_token": "is not a token of this worker"}, reason="PAGE_TOKEN_INVALID")
        conditions: list[str] = ["id > ?"]
        values: list[int | str] = [int(token or 0)]
        for column, value in (("door", chosen.door), ("task_type", chosen.task_type)):
            if value:
                conditions.append(f"{column} = ?")
                values.append(value)
        if chosen.task_id_prefix:
            conditions.append("substr(task_id, 1, ?) = ?")
            values += [len(chosen.task_id_prefix), chosen.task_id_prefix]
        if chosen.states:
            conditions.append(f"state IN ({', '.join('?' * len(chosen.states))})")
            values += sorted(chosen.states)
        query = f"SELECT id, record FROM task WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ?"  # noqa: S608 -- only constants

        def select(connection: Connection) -> TaskPage:
            rows = connection.execute(query, (*values, limit + 1)).fetchall()
            return TaskPage(
                records=[_RECORD.validate_json(text) for _, text in rows[:limit]],
                next_token=str(rows[limit - 1][0]) if len(rows) > limit else "",
            )

        return await self._database.read(select)

    async def changes(self, after: int, *, door: str = "", limit: int = 100, wait: float = 0.0) -> ChangePage:
        """Return the records that changed after a position; wait so many seconds for the first."""
        deadline = self._clock.monotonic() + wait

        def select(connection: Connection) -> ChangePage:
            rows = connection.execute(
                "SELECT change, record FROM task WHERE change > ? AND (? = '' OR door = ?) ORDER BY change LIMIT ?",
                (after, door, door, limit),
            ).fetchall()
            return ChangePage(
                records=[_RECORD.validate_json(text) for _, text in rows], position=rows[-1][0] if rows else after
            )

        while True:
            grew = self._grew.listen()
            page = await self._database.read(select)
            left = deadline - self._clock.monotonic()
            if page.records or left <= 0 or not await wait_for(grew, left, self._clock):
                return page

    async def forget(self, finished_before: float, *, limit: int = 1000) -> Sequence[TaskKey]:
        """Delete tasks that ended before a time, with their notes; return which. At most so many at once."""

        def delete(connection: Connection) -> Sequence[TaskKey]:
            rows = connection.execute(
                "DELETE FROM task WHERE id IN (SELECT id FROM task WHERE finished_at < ? ORDER BY finished_at LIMIT ?)"
                " RETURNING task_id, attempt",
                (finished_before, limit),
            ).fetchall()
            # Positions must not be given out twice, even when the task with the highest one is gone.
            connection.execute("UPDATE journal SET change = ?", (self._change,))
            return [TaskKey(task_id=task_id, attempt=attempt) for task_id, attempt in rows]

        return await self._database.write(delete)

    async def read_notes(self, door: str) -> Mapping[TaskKey, str]:
        """Return every note of a door."""

        def select(connection: Connection) -> Mapping[TaskKey, str]:
            rows = connection.execute(
                "SELECT task_id, attempt, text FROM note JOIN task ON task.id = note.task WHERE note.door = ?", (door,)
            )
            return {TaskKey(task_id=task_id, attempt=attempt): text for task_id, attempt, text in rows}

        return await self._database.read(select)

    async def write_notes(self, door: str, notes: Mapping[TaskKey, str]) -> None:
        """Make notes durable; one for a task that is gone is dropped."""

        def upsert(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO note (door, task, text) SELECT ?, id, ? FROM task WHERE task_id = ? AND attempt = ?"
                " ON CONFLICT (door, task) DO UPDATE SET text = excluded.text",
                [(door, text, *_values(key)) for key, text in notes.items()],
            )

        await self._database.write(upsert)

    def _next_change(self) -> int:
        """Only the writer's thread calls this, in the order in which it commits."""
        self._change += 1
        return self._change


def _identify(connection: Connection) -> tuple[str, int]:
    row = connection.execute("SELECT id, change FROM journal").fetchone()
    if row is None:
        row = (uuid.uuid4().hex, 0)
        connection.execute("INSERT INTO journal (id, change) VALUES (?, ?)", row)
    (change,) = connection.execute("SELECT coalesce(max(change), 0) FROM task").fetchone()
    return row[0], max(row[1], change)


def _select(connection: Connection, key: TaskKey) -> TaskRecord | None:
    query = "SELECT record FROM task WHERE task_id = ? AND attempt = ?"
    row = connection.execute(query, _values(key)).fetchone()
    return None if row is None else _RECORD.validate_json(row[0])


def _values(key: TaskKey) -> tuple[str, int]:
    return key.task_id, key.attempt


def _required(record: TaskRecord | None) -> TaskRecord:
    assert record is not None
    return record
