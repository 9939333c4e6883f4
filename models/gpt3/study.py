r"""One row of the GPT-3 study: a configuration, a mode and a microbatch size, planned.

With $T$ tokens and $F$ model FLOPs a token in a step of $t$ seconds on $n$ devices of peak $P$ (the
compute dtype's, of the device's table),

$$\text{FLOP/s a device} = \frac{F\,T}{n\,t}, \qquad \text{MFU} = \frac{F\,T}{n\,t\,P}, \qquad
\text{HFU} = \frac{(F + r\,F_{\text{layers}}/3)\,T}{n\,t\,P}.$$

$F$ is `GPT3Config.model_flops_per_token`: 6 for each weight of a matrix product and 12 L S h for
attention; what is recomputed is not counted (model-FLOP utilisation: Chowdhery et al. 2022,
arXiv:2204.02311, appendix B). HFU counts the forward pass of the part $r$ of the layers that is
recomputed, a third of the layers' $F_{\text{layers}}$.
"""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xshard
from models.gpt3.config import CONFIGS, GPT3Config
from models.gpt3.published import PublishedRow, published
from models.gpt3.step import batch_avals, make_train_step, state_avals
from xshard.mpmd.plan_file import load_any
from xshard.place import read_bytes

MODES = ("tensor", "pipeline")
"""One program over all devices; or that, or stages on groups of them, whichever is faster."""
MOST_TRIES = 3
"""How often a case is planned and compiled to meet its limit."""
_SPARE = 0.995
"""The part of a lowered limit that is used."""
HOST = 8
"""Devices of a host; the published figures do not say."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a row is about; `cluster` is a kind of device, `memory_limit` bytes as text.

    Attributes:
      schedule, stages: of the mode pipeline: as `xshard.plan_pipeline` takes them.
    """

    model: str
    mode: str
    microbatch_size: int
    cluster: str
    memory_limit: str
    schedule: str = "1f1b"
    stages: int | str = "auto"

    @property
    def config(self) -> GPT3Config:
        """Its configuration."""
        return CONFIGS[self.model]

    @property
    def file_name(self) -> str:
        """Of its plan."""
        parts = self.model, self.mode, self.microbatch_size, self.cluster, self.memory_limit
        stated = [x for x in (self.schedule, self.stages) if x not in ("1f1b", "auto")]
        return "-".join(map(str, (*parts, *stated))) + ".json"

    @property
    def limit_bytes(self) -> float:
        """Of a device."""
        return read_bytes(self.memory_limit) or math.inf

    def place(self) -> xshard.Cluster:
        """So many devices of the kind as the published run had."""
        n = self.config.num_devices
        return xshard.Cluster.parse(f"{self.cluster}:{-(-n // HOST)}x{min(n, HOST)}")


@dataclass(frozen=True, slots=True)
class Row:
    """A planned case.

    Attributes:
      planning_s: of the wall, tracing and all meshes included.
      step_s, peak_bytes: predicted; None where nothing fits.
      gap: at most this share could be saved by another plan.
      flops_per_s, mfu, hfu: of a device; see the module's docstring.
      recomputed: layers that the backward pass computes again, of all; of a pipeline, attention and
        MLP count apart.
      compiled_bytes: peak by XLA's compiler for these devices, if it was asked; of a pipeline, all
        that the fullest device holds counted in.
      compiling_s: of the wall, for that.
      not_compiled: why XLA did not compile it.
      error: why there is no plan.
    """

    case: Case
    planning_s: float
    mesh: str = ""
    step_s: float | None = None
    peak_bytes: int | None = None
    gap: float | None = None
    flops_per_s: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    recomputed: str = ""
    compiled_bytes: int | None = None
    compiling_s: float | None = None
    not_compiled: str | None = None
    error: str | None = None

    @property
    def plan(self) -> tuple[object, ...]:
        """Equal for rows of one plan: a pipeline's may be that of one program."""
        case, figures = self.case, (self.step_s, self.peak_bytes, self.recomputed)
        return case.model, case.microbatch_size, case.memory_limit, self.mesh, *figures

    @property
    def memory_error(self) -> float | None:
        """Predicted over compiled peak memory, less 1."""
        if self.peak_bytes is None or self.compiled_bytes is None:
            return None
        return self.peak_bytes / self.compiled_bytes - 1

    @property
    def fits(self) -> bool:
        """Whether what XLA allocates, where it was asked, keeps to the memory limit."""
        return (self.compiled_bytes or 0) <= self.case.limit_bytes

    @property
    def published(self) -> PublishedRow | None:
        """The published row of the same case, if there is one."""
        key = self.case.model, self.case.mode, self.case.microbatch_size
        return next((row for row in published() if row.key == key), None)


def plan_row(
    case: Case,
    time_limit: float,
    *,
    verify: bool = False,
    like: Iterable[Row] = (),
    plans: Path | None = None,
) -> Row:
    """Plans a case; with `verify` XLA compiles it too, which takes minutes.

    A plan that XLA allocates more for than the limit is made again under a lower one, as
    `xshard.auto_shard` does.

    Args:
      like: rows that are there: the case's own is not planned again if `plans` has its plan, and
        what was compiled of an equal plan not compiled again.
      plans: folder of the plans, one file of JSON for each.
    """
    known, file = list(like), plans and plans / case.file_name
    found = next((row for row in known if row.case == case), None)
    if found is not None and file and file.exists():
        plan = load_any(file)
        row = _compiled(found, plan, _step(case.config), known) if verify else found
    else:
        row = _planned_row(case, time_limit, case.memory_limit, 0.0, verify, known, file)
    target = case.limit_bytes
    for _ in range(MOST_TRIES - 1):
        if row.fits or row.compiled_bytes is None:
            break
        target *= case.limit_bytes / row.compiled_bytes * _SPARE
        spent = row.planning_s, verify, known, file
        again = _planned_row(case, time_limit, str(int(target)), *spent)
        if again.error:
            return replace(row, planning_s=again.planning_s)
        row = again
    return row


def _planned_row(
    case: Case, time_limit: float, limit: str, before_s: float, verify: bool, known: list[Row],
    file: Path | None,
) -> Row:  # fmt: skip
    """The row of a new plan under a limit, after `before_s` of planning."""
    began = time.perf_counter()
    try:
        plan = planned(case, time_limit, limit)
    except xshard.InfeasibleError as error:
        reason = str(error).partition("\n")[0]
        return Row(case, before_s + time.perf_counter() - began, error=reason)
    row = _row(case, plan, before_s + time.perf_counter() - began)
    if file:
        plan.save(file)
    return _compiled(row, plan, (), known) if verify else row


def _compiled(
    row: Row, plan: xshard.Plan | xshard.PipelinePlan, step: tuple[Any, ...], like: list[Row]
) -> Row:
    """The row with what XLA says of its plan; a plan from a file needs the step."""
    same = next((r for r in like if r.compiled_bytes and r.plan == row.plan), None)
    if same is not None:
        return replace(row, compiled_bytes=same.compiled_bytes, compiling_s=0.0)
    began = time.perf_counter()
    try:
        found = xshard.verify(plan, *step).compiled_bytes
    except (xshard.VerifyError, xshard.PlanError) as error:
        return replace(row, not_compiled=str(error).partition("\n")[0])
    return replace(row, compiled_bytes=found, compiling_s=time.perf_counter() - began)


def planned(
    case: Case, time_limit: float, memory_limit: str | None = None
) -> xshard.Plan | xshard.PipelinePlan:
    """The fastest plan of a case.

    Args:
      time_limit: seconds, of one solve.
      memory_limit: another than the case's.

    Raises:
      InfeasibleError: nothing fits.
    """
    config = case.config
    options: dict[str, Any] = {
        "cluster": case.place(), "memory_limit": memory_limit or case.memory_limit,
        "time_limit": time_limit, "microbatches": config.batch // case.microbatch_size,
        "remat": "auto",
    }  # fmt: skip
    if case.mode == "pipeline":
        options |= {"pipeline": case.stages, "schedule": case.schedule}
        return xshard.plan_pipeline(*_step(config), **options)
    return xshard.plan(*_step(config), **options, plan_cache=False)


def _step(config: GPT3Config) -> tuple[Any, ...]:
    """The train step and the shapes that it takes."""
    return make_train_step(config).train, state_avals(config), batch_avals(config)


def _row(case: Case, plan: xshard.Plan | xshard.PipelinePlan, planning_s: float) -> Row:
    config, step_s = case.config, plan.objective_ns * 1e-9
    speed = config.model_flops_per_token * config.tokens_per_step / step_s / config.num_devices
    mfu = speed / case.place().device.peak_flops[config.dtype]
    mesh, (again, layers) = "×".join(map(str, plan.mesh.sizes)), _recomputed(plan, config)
    more = again / layers * _layers_share(config) / 3
    if isinstance(plan, xshard.PipelinePlan):
        mesh = f"{plan.schedule.num_groups} stages of {mesh}"
        peak = max(plan.peak_bytes)
    else:
        peak = plan.peak_bytes
    return Row(case, planning_s, mesh, step_s, peak, plan.gap, speed, mfu, mfu * (1 + more),
               f"{again} of {layers}")  # fmt: skip


def _recomputed(plan: xshard.Plan | xshard.PipelinePlan, config: GPT3Config) -> tuple[int, int]:
    """(recomputed, all) layers; of a pipeline, what its stages have whole numbers of."""
    if isinstance(plan, xshard.PipelinePlan):
        return sum(plan.recomputed), sum(plan.layers)
    return sum(chain.recomputed for chain in plan.remat), config.num_layers


def _layers_share(config: GPT3Config) -> float:
    """What part of the model's FLOPs its layers have; the rest is the head's."""
    return 1 - 6 * config.vocab * config.hidden / config.model_flops_per_token


def best(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """The fastest row of each model and mode."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row.case.model, row.case.mode
        if _time(row) < (_time(found[key]) if key in found else math.inf):
            found[key] = row
    return found


def _time(row: Row) -> float:
    return math.inf if row.step_s is None else row.step_s


def read(path: Path) -> dict[Case, Row]:
    """The rows that `append` wrote; a last line that was cut off is left out."""
    found: dict[Case, Row] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        case = Case(**record.pop("case"))
        found[case] = Row(case, **record)
    return found


def append(path: Path, row: Row) -> None:
    """Adds a row to a file of JSON lines."""
    text = path.read_text("utf-8") if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(text and not text.endswith("\n")) + json.dumps(asdict(row)) + "\n")
