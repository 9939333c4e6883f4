"""The cost database: nothing is lost by kills, by writers at once or by corruption."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from xshard.cost.database import APPLICATION_ID, CostDatabase, CostDatabaseWarning, Row
from xshard.cost.signature import Signature
from xshard.errors import CostError

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from tests.cost.test_database import row
from xshard.cost.database import CostDatabase
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with CostDatabase(path) as db:
    for i in range(count):
        db.add([row(name, i)])
        print(i, flush=True)
"""


def row(family: str = "f", size: int = 8, median_ns: float = 1.5, jax: str = "1.0") -> Row:
    """A measurement."""
    signature = Signature("dot_general", family, (size, 2))
    return Row("abacus", jax, signature, median_ns, 0.1, 7, "2026-01-31T12:00:00")


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """A process that writes so many rows, and prints the number of each when it is in."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def test_rows_come_back(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "costs.sqlite"
    with CostDatabase(path) as db:
        assert db.rows() == []
        assert db.add([row("a"), row("b"), row("a", jax="2.0")]) == 3
        assert db.add([row("a", median_ns=3.0)]) == 1  # in place of the first
    with CostDatabase(path, write=False) as db:
        assert db.rows() == [row("a", median_ns=3.0), row("b"), row("a", jax="2.0")]
        assert db.rows(["abacus"], "2.0") == [row("a", jax="2.0")]
        assert db.rows(["another"]) == []
        assert db.has("abacus", "1.0", row("b").signature)
        assert not db.has("abacus", "2.0", row("b").signature)


def test_a_reader_makes_no_file(tmp_path: Path):
    with CostDatabase(tmp_path / "none.sqlite", write=False) as db:
        assert db.rows() == []
    assert list(tmp_path.iterdir()) == []


def test_writers_at_once_lose_nothing(tmp_path: Path):
    path = tmp_path / "costs.sqlite"
    writers = [writer(path, name, 150) for name in "ab"]
    assert [w.communicate()[0].count("\n") for w in writers] == [150, 150]
    with CostDatabase(path) as db:
        assert db.rows() == [row(name, i) for name in "ab" for i in sorted(range(150), key=text)]


def text(size: int) -> str:
    """The order of rows in the database."""
    return f"[{size},2]"


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path):
    path = tmp_path / "costs.sqlite"
    process = writer(path, "a", 1_000_000)
    assert process.stdout
    told = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    told += map(int, process.stdout.read().split())
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    with CostDatabase(path) as db:  # the one that was being written may be in, too
        kept = {r.signature.sizes[0] for r in db.rows()}
    assert {*told} <= kept <= {*range(len(told) + 1)}


@pytest.mark.parametrize("content", [b"SQLite no more\n" * 100, b"\x00" * 5000, None])
def test_a_corrupt_file_is_set_aside(tmp_path: Path, content: bytes | None):
    path = tmp_path / "costs.sqlite"
    with CostDatabase(path) as db:
        db.add([row(f"{i:050}") for i in range(300)])
    whole = path.read_bytes()
    content = content or whole[: len(whole) // 2]
    path.write_bytes(content)
    with pytest.warns(CostDatabaseWarning, match=r"is corrupt; it is now .*corrupt-1, and a new"):
        db = CostDatabase(path)
    with db:
        db.add([row()])
        assert db.rows() == [row()]
    assert Path(f"{path}.corrupt-1").read_bytes() == content


def test_corrupt_files_do_not_replace_each_other(tmp_path: Path):
    path = tmp_path / "costs.sqlite"
    for i in (1, 2):
        path.write_bytes(b"nonsense %d" % i * 100)
        with pytest.warns(CostDatabaseWarning, match=f"corrupt-{i}"), CostDatabase(path):
            pass
    assert Path(f"{path}.corrupt-1").read_bytes() == b"nonsense 1" * 100


def test_two_processes_set_a_corrupt_file_aside_once(tmp_path: Path):
    path = tmp_path / "costs.sqlite"
    path.write_bytes(b"nonsense" * 1000)
    writers = [writer(path, name, 20) for name in "ab"]
    assert [w.communicate()[0].count("\n") for w in writers] == [20, 20]
    with CostDatabase(path) as db:
        assert len(db.rows()) == 40
    assert [p.name for p in tmp_path.glob("*.corrupt-*")] == ["costs.sqlite.corrupt-1"]


@pytest.mark.parametrize(
    ("pragma", "message"),
    [
        (f"application_id={APPLICATION_ID}; PRAGMA user_version=2", "version 2 of its schema, and"),
        ("application_id=7", "of another program; give another path"),
        ("user_version=1", "of another program; give another path"),
    ],
)
@pytest.mark.parametrize("write", [True, False])
def test_other_schemas_are_refused_and_kept(tmp_path: Path, pragma: str, message: str, write: bool):
    path = tmp_path / "costs.sqlite"
    db = sqlite3.connect(path)
    db.executescript(f"CREATE TABLE t (x); PRAGMA {pragma}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(CostError, match=message):
        CostDatabase(path, write=write)
    assert path.read_bytes() == before


def test_no_place_for_a_database(tmp_path: Path):
    with pytest.raises(CostError, match=r"cannot use the cost database .*; give another path"):
        CostDatabase(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CostError, match=r"Not a directory|File exists"):
        CostDatabase(tmp_path / "file" / "costs.sqlite")
