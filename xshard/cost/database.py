"""The cost database: measured times in an SQLite file that many processes may write at once.

One row is one measured signature on one kind of device with one version of JAX. Each is written in
a transaction of its own in WAL mode, so a killed process loses at most the measurement that it was
taking, and writers wait for each other (`BUSY_S`). A file that SQLite cannot read is moved aside,
with a warning that says where to; nothing is deleted. `PRAGMA user_version` holds the schema's
version and `application_id` says that the file is ours.
"""

from __future__ import annotations

import json
import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from xshard.cost.lock import locked
from xshard.cost.signature import Signature
from xshard.errors import CostError

VERSION = 1
APPLICATION_ID = 0x78736864
""" "xshd"."""
BUSY_S = 60.0
_SCHEMA = """
CREATE TABLE costs (
  device TEXT NOT NULL, jax TEXT NOT NULL,
  kind TEXT NOT NULL, family TEXT NOT NULL, sizes TEXT NOT NULL,
  median_ns REAL NOT NULL CHECK (median_ns >= 0), spread REAL NOT NULL, samples INTEGER NOT NULL,
  measured_at TEXT NOT NULL,
  PRIMARY KEY (device, jax, kind, family, sizes)
) WITHOUT ROWID
"""
_COLUMNS = "device, jax, kind, family, sizes, median_ns, spread, samples, measured_at"
_WRITE = f"INSERT OR REPLACE INTO costs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_IN_MEMORY = ":memory:"


class CostDatabaseWarning(UserWarning):
    """A cost database was set aside."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
      device: what was measured, as `device_key` calls it.
      jax: the version of JAX.
      median_ns: median time of one run.
      spread: half the distance between the quartiles, as a part of the median.
      samples: how many runs the median is of.
      measured_at: UTC, "2026-01-31T12:00:00".
    """

    device: str
    jax: str
    signature: Signature
    median_ns: float
    spread: float
    samples: int
    measured_at: str = ""


class CostDatabase:
    """An open cost database; use it in a `with`.

    Raises:
      CostError: the file cannot be opened, is of a newer schema, or is another program's.
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = True) -> None:
        """Opens `path`, and makes it where it is to be written; a reader needs no file."""
        self.path = os.fspath(path)
        with _explained(self.path):
            self._db = _opened(self.path, write)

    def __enter__(self) -> CostDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self._db.close()

    def add(self, rows: Iterable[Row]) -> int:
        """Writes rows in one transaction, in place of earlier ones of the same signature."""
        values = [_values(row) for row in rows]
        with _explained(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(_WRITE, values)
        return len(values)

    def rows(self, devices: Sequence[str] | None = None, jax: str | None = None) -> list[Row]:
        """Rows in a fixed order: all, or those of any of `devices`, and of one version of JAX."""
        wanted, values = ["TRUE"], list[str]()
        if devices is not None:
            wanted.append(f"device IN ({', '.join('?' * len(devices))})")
            values += devices
        if jax is not None:
            wanted.append("jax = ?")
            values.append(jax)
        query = f"SELECT {_COLUMNS} FROM costs WHERE {' AND '.join(wanted)} ORDER BY 1, 2, 3, 4, 5"
        with _explained(self.path):
            return [_row(values) for values in self._db.execute(query, values)]

    def has(self, device: str, jax: str, signature: Signature) -> bool:
        """Whether there is such a row."""
        key = device, jax, signature.kind, signature.family, _sizes(signature)
        query = "SELECT 1 FROM costs WHERE device=? AND jax=? AND kind=? AND family=? AND sizes=?"
        with _explained(self.path):
            return self._db.execute(query, key).fetchone() is not None


def _values(row: Row) -> tuple[Any, ...]:
    s = row.signature
    return (row.device, row.jax, s.kind, s.family, _sizes(s), row.median_ns, row.spread,
            row.samples, row.measured_at)  # fmt: skip


def _sizes(signature: Signature) -> str:
    return json.dumps(signature.sizes, separators=(",", ":"))


def _row(values: Sequence[Any]) -> Row:
    device, jax, kind, family, sizes, *figures = values
    return Row(device, jax, Signature(kind, family, tuple(json.loads(sizes))), *figures)


def _opened(path: str, write: bool) -> sqlite3.Connection:
    """A connection to a checked database of this schema."""
    if path == _IN_MEMORY or (not write and not os.path.exists(path)):
        db = sqlite3.connect(_IN_MEMORY, isolation_level=None)
        _make(db)
        return db
    if write:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with locked(path):  # so that two processes do not both set a corrupt file aside
        if not _is_sound(path):
            _set_aside(path)
        db = _connect(path, write)
        try:
            _check(db, path, write)
        except BaseException:
            db.close()
            raise
    return db


def _connect(path: str, write: bool) -> sqlite3.Connection:
    if write:
        return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    if not os.path.exists(path):
        return _opened(_IN_MEMORY, write)
    for mode in ("mode=ro", "immutable=1"):  # the latter where a folder cannot be written
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?{mode}", BUSY_S, uri=True)
        try:
            db.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError:
            db.close()
            if mode == "immutable=1":
                raise
        else:
            return db
    raise AssertionError("unreachable")


def _check(db: sqlite3.Connection, path: str, write: bool) -> None:
    """Makes the table in a new file; refuses other programs' files and newer schemas."""
    (version,), (owner,) = (
        db.execute(f"PRAGMA {name}").fetchone() for name in ("user_version", "application_id")
    )
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if owner != APPLICATION_ID and (tables or owner or version):
        raise CostError(
            f"{path} is an SQLite file of another program; give another path for the cost database"
        )
    if version > VERSION:
        raise CostError(
            f"the cost database {path} has version {version} of its schema, and this xshard reads "
            f"up to version {VERSION}; use the xshard that wrote it, or another path"
        )
    if not tables:
        if not write:
            raise CostError(f"the cost database {path} is empty; measure into it, or remove it")
        _make(db)
    if write:
        db.execute("PRAGMA journal_mode=WAL")  # a file system without shared memory keeps its own
        db.execute("PRAGMA synchronous=NORMAL")


def _make(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        db.execute(_SCHEMA)
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={VERSION}")
    db.execute("COMMIT")


def _is_sound(path: str) -> bool:
    """Whether SQLite can read all of the file; a missing or empty one is as good as sound."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return True
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_S)) as db:
            return db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.OperationalError:
        return True  # locked, or not ours to open: said where it is opened
    except sqlite3.DatabaseError:
        return False


def _set_aside(path: str) -> None:
    """Renames a corrupt file, and what SQLite keeps beside it, and says so."""
    number = 1
    while os.path.exists(target := f"{path}.corrupt-{number}"):
        number += 1
    os.replace(path, target)
    for tail in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(path + tail, target + tail)
    warnings.warn(
        f"the cost database {path} is corrupt; it is now {target}, and a new one is begun",
        CostDatabaseWarning,
        stacklevel=2,
    )


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Errors of SQLite and of the system as one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CostError(
            f"cannot use the cost database {path}: {reason}; give another path, or none"
        ) from error
