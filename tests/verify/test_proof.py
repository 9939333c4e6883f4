"""`verify`: a plan held against the compiler of its devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import xshard
from tests.steps import array
from tests.verify.programs import BATCH, STATE, step
from xshard import cli
from xshard.plan.plan import Plan
from xshard.verify.target import missing
from xshard.verify.verification import Memory, Verification

WHERE = "tests.verify.programs"


def planned(cluster: str, mesh: tuple[int, ...] = (2, 4)) -> Plan:
    return xshard.plan(step, STATE, BATCH, cluster=cluster, mesh=mesh)


@pytest.fixture(scope="module")
def cpu() -> Plan:
    return planned("cpu:8")


def test_arguments_results_and_collectives_are_as_planned(cpu: Plan) -> None:
    found = xshard.verify(cpu)
    assert found.platform == "cpu"
    assert found.predicted.arguments == found.compiled.arguments
    assert found.predicted.aliased == found.compiled.aliased
    assert found.predicted.total == cpu.peak_bytes
    assert found.audit.ok()
    assert not found.surprises


def test_a_plan_from_a_file_needs_its_function(cpu: Plan) -> None:
    loaded = Plan.from_json(cpu.to_json())
    with pytest.raises(xshard.VerifyError, match=r"comes from a file.*verify\(plan, train_step"):
        xshard.verify(loaded)
    with pytest.raises(xshard.PlanError, match=r"args\[1\] is float32\[1024,256\] in the plan"):
        xshard.verify(loaded, step, STATE, array(8, 256))
    assert xshard.verify(loaded, step, STATE, BATCH).compiled == xshard.verify(cpu).compiled


def test_a_plan_for_devices_of_no_table(cpu: Plan) -> None:
    with pytest.raises(xshard.VerifyError, match="pass cluster="):
        xshard.verify(replace(cpu, cluster="abacus:1x8"))


def test_captured_arrays_need_no_device() -> None:
    table = jnp.ones((256, 256))  # large enough to be a sharded argument
    fun = lambda x: x @ table  # noqa: E731
    found = xshard.verify(xshard.plan(fun, BATCH, cluster="cpu:8", mesh=(8,), donate_argnums=()))
    assert found.audit.ok()


def test_the_command_line(cpu: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu.save(tmp_path / "plan.json")
    line = ["verify", f"{WHERE}:step", str(tmp_path / "plan.json"), "--args", f"{WHERE}:avals"]
    code = cli.main([*line, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert code == (0 if record["ok"] else 1)
    assert record["compiled"]["total"] > 0
    assert cli.main([*line, "--cluster", "abacus:8"]) == 2
    assert "no device table 'abacus'" in capsys.readouterr().err


def scanned(w: Any, x: jax.Array) -> Any:
    """Four layers in a loop, and their gradient's descent."""

    def loss(w: Any) -> jax.Array:
        def layer(h: jax.Array, one: Any) -> Any:
            return h + jnp.tanh(h @ one["up"]) @ one["down"], None

        return jnp.mean(jax.lax.scan(layer, x, w)[0] ** 2)

    value, slopes = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, slopes), value


@pytest.mark.parametrize("mesh", [(2, 4), (2, 2, 2)])
@pytest.mark.parametrize(
    "up", [P(None, "a", None), P(None, "b", "a"), P(None, None, ("a", "b"))], ids=str
)
def test_loops_do_what_is_planned_whatever_is_pinned(mesh: tuple[int, ...], up: P | None) -> None:
    """Tiles in another order than the mesh's axes included."""
    w = {"up": array(4, 256, 512), "down": array(4, 512, 256)}
    names = dict(zip("abc", mesh, strict=False))
    plan = xshard.plan(
        scanned, w, array(512, 256), cluster="cpu:8", mesh=names,
        in_specs=({"up": up, "down": None}, None),
    )  # fmt: skip
    found = xshard.verify(plan)
    assert found.audit.ok(), found.audit


GOLDEN = """\
Memory of one device
              predicted   compiled   difference
───────────────────────────────────────────────
arguments         100 B      100 B            0
results            40 B       40 B            0
aliased            40 B       40 B            0
temporaries        20 B       10 B      +100.0%
peak              120 B      110 B        +9.1%"""


def test_its_text(cpu: Plan) -> None:
    audit = xshard.verify(cpu).audit
    found = Verification(
        "cpu:1x8", "data=8", "cpu", Memory(100, 40, 40, 20), Memory(100, 40, 40, 10), audit,
        memory_limit=105, seconds={"compiling": 1.0},
    )  # fmt: skip
    assert GOLDEN in str(found)
    assert "✗ XLA allocates more than the limit of 105 B" in str(found)
    assert not found.fits
    assert not found.ok()
    assert replace(found, memory_limit=None).ok(memory=0.1)


needs_cuda = pytest.mark.skipif(bool(missing("cuda")), reason=missing("cuda") or "installed")


@needs_cuda
@pytest.mark.parametrize("kind", ["v100", "a100-40gb", "a100", "h100", "h200"])
def test_gpus_that_are_not_here(kind: str) -> None:
    found = xshard.verify(planned(f"{kind}:1x8"))
    assert found.platform == "cuda"
    assert found.predicted.arguments == found.compiled.arguments
    assert found.audit.ok()
    assert {c.kind for c in found.audit.rows} <= {
        "all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute",
    }  # fmt: skip


@needs_cuda
def test_sixty_four_gpus_on_eight_hosts() -> None:
    found = xshard.verify(planned("v100:8x8", (16, 4)))
    assert found.predicted.arguments == found.compiled.arguments
    assert found.predicted.aliased == found.compiled.aliased


@needs_cuda
def test_where_jax_left_the_plugin_out(tmp_path: Path) -> None:
    """Without JAX_PLATFORMS JAX looks for a GPU, finds none and does not register the plugin."""
    planned("h100:1x8").save(tmp_path / "plan.json")
    code = (
        "import jax, xshard; jax.devices();"
        f"from {WHERE} import STATE, BATCH, step;"
        f"plan = xshard.Plan.load({str(tmp_path / 'plan.json')!r});"
        "print(xshard.verify(plan, step, STATE, BATCH).platform)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "cuda", done.stderr


@pytest.mark.skipif(bool(missing("tpu")), reason=missing("tpu") or "installed")
@pytest.mark.parametrize("count", [1, 2, 6, 8])
def test_tpus_that_are_not_here(count: int) -> None:
    """Also fewer than a host has, and numbers that make no square of hosts."""
    found = xshard.verify(planned(f"tpu-v5e:{count}", (count,)))
    assert found.platform == "tpu"
    assert found.predicted.arguments == found.compiled.arguments
