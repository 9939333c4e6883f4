"""Plans on disk: what is planned once is read after that, and nothing else is ever used."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import xshard
from xshard import plan_cache
from xshard.outer import Outer
from xshard.plan.plan import Plan


def step(w: Any, x: Any) -> Any:
    return w - 0.1 * jax.grad(lambda w: jnp.mean((x @ w) ** 2))(w)


def other(w: Any, x: Any) -> Any:
    return w - 0.2 * jax.grad(lambda w: jnp.mean((x @ w) ** 2))(w)


AVALS = jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((32, 64), "float32")


def plan(folder: Any, fun: Any = step, **options: Any) -> Plan:
    return xshard.plan(fun, *AVALS, cluster="cpu:4", mesh=(4,), plan_cache=folder, **options)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The limits of all that is planned and not read."""
    limits: list[int | None] = []
    whole = Outer.best

    def counted(self: Outer, limit: int | None) -> Plan:
        limits.append(limit)
        return whole(self, limit)

    monkeypatch.setattr(Outer, "best", counted)
    return limits


def test_the_same_step_is_planned_once(tmp_path: Path, planned: list[int | None]) -> None:
    first = plan(tmp_path)
    again = plan(tmp_path)
    assert len(planned) == 1
    assert again == first
    assert "cache" in again.seconds


@pytest.mark.parametrize(
    "options",
    [
        {"fun": other},
        {"memory_limit": "1MB"},
        {"in_specs": (P("data"), None)},
        {"donate_argnums": ()},
        {"time_limit": 5.0},
        {"microbatches": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_anything_that_matters_makes_another_entry(options: dict[str, Any], tmp_path: Path) -> None:
    plan(tmp_path)
    plan(tmp_path, **options)
    assert len(entries(tmp_path)) == 2


def test_a_broken_entry_is_set_aside(tmp_path: Path, planned: list[int | None]) -> None:
    first = plan(tmp_path)
    [entry] = entries(tmp_path)
    text = entry.read_text()
    for broken in ("", text[:50], "not JSON", text.replace(first.fingerprint, "0" * 32)):
        entry.write_text(broken)
        assert plan(tmp_path) == first
        assert entry.with_suffix(".bad").read_text() == broken
        assert entry.read_text() == text
    assert len(planned) == 5


def test_a_plan_that_was_read_explains_itself(tmp_path: Path, planned: list[int | None]) -> None:
    first = plan(tmp_path)
    again = plan(tmp_path)
    name = first.arguments[0].path
    assert again.explain(name).alternatives == first.explain(name).alternatives
    assert again.templates == first.templates
    assert len(planned) == 1


def test_it_can_be_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: list[int | None]
) -> None:
    monkeypatch.setenv(plan_cache.VARIABLE, str(tmp_path))
    plan(False)
    monkeypatch.setenv(plan_cache.VARIABLE, "")
    plan(None)
    assert not entries(tmp_path)
    monkeypatch.setenv(plan_cache.VARIABLE, str(tmp_path))
    plan(None)
    assert len(entries(tmp_path)) == 1
    assert len(planned) == 3


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert plan(blocked / "plans").mesh.sizes == (4,)


def test_a_step_runs_from_a_plan_that_was_read(tmp_path: Path, planned: list[int | None]) -> None:
    w, x = jnp.ones((64, 64)), jnp.ones((32, 64))
    results = [xshard.auto_shard(step, 4, plan_cache=tmp_path)(w, x) for _ in range(2)]
    assert len(planned) == 1
    assert (results[0] == results[1]).all()


def test_readers_beside_writers_see_whole_plans(tmp_path: Path) -> None:
    made = plan(tmp_path)
    [entry] = entries(tmp_path)
    writers = [
        threading.Thread(target=lambda: [plan_cache._write(entry, made) for _ in range(20)])
        for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert Plan.load(entry) == made
    assert entries(tmp_path) == [entry]


def test_the_oldest_entries_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "MOST_ENTRIES", 2)
    for limit in ("1MB", "2MB", "3MB"):
        plan(tmp_path, memory_limit=limit)
    assert len(entries(tmp_path)) == 2
