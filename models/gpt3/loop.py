"""The training loop: plan, create or restore the state, train, compare prediction and fact."""

import statistics
import time
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import xshard
from models.gpt3.checkpoint import Checkpoints
from models.gpt3.cli import Arguments
from models.gpt3.config import GPT3Config
from models.gpt3.data import Corpus, Text
from models.gpt3.launch import make_mesh, put_batch
from models.gpt3.report import Report
from models.gpt3.step import batch_avals, make_train_step, state_avals

EVAL_BATCHES = 4
"""Held-out batches that a held-out loss is the mean of."""
WARMUP_STEPS = 2
"""Steps after a start that are not timed."""


def train(args: Arguments, config: GPT3Config) -> None:
    """Runs the command line's training from plan to summary.

    Raises:
        InputError: the mesh or the checkpoints do not fit.
        xshard.XshardError: there is no such plan.
    """
    report = Report(as_json=args.json, silent=jax.process_index() > 0, brief=args.brief)
    trainer = Trainer(args, config, make_mesh(args.mesh), report)
    checkpoints = None
    if args.checkpoint_dir:
        checkpoints = Checkpoints(args.checkpoint_dir, config, args.seed)
    state = trainer.restored(checkpoints) or trainer.created()
    with report:
        state = trainer.run(state, checkpoints)
    report.summary(trainer.facts())


class Trainer:
    """A planned and compiled train step, and what a run needs around it."""

    def __init__(
        self, args: Arguments, config: GPT3Config, mesh: Mesh | int, report: Report
    ) -> None:
        """Plans, says how, and compiles; nothing is allocated on the devices yet."""
        self.args, self.config, self.report = args, config, report
        self.text = Text.read(seed=args.seed)
        self.steps = make_train_step(config)
        self.state_avals, self.batch_avals = state_avals(config), batch_avals(config)
        options = _options(args)
        self.step = xshard.auto_shard(self.steps.train, mesh, donate_argnums=(0,), **options)
        lowered = self.step.lower(self.state_avals, self.batch_avals)
        report.plan(self.step.plan)
        self.compiled = None if args.pipeline else lowered.compile()
        if args.save_plan and jax.process_index() == 0:
            self.step.plan.save(args.save_plan)
        self.batch_shardings = self.step.in_shardings[1]
        portable = self.step.portable(self.state_avals)
        self.state_shardings = jax.tree.map(lambda x: x.sharding, portable)
        self.evaluate = self._evaluation(options)
        self.times_s: list[float] = []

    def _evaluation(self, options: dict[str, Any]) -> Any:
        """A step over all devices, on the state as checkpoints have it."""
        mesh = self.state_shardings["step"].mesh
        rows = self.batch_shardings["inputs"]
        spec = rows.spec if rows.mesh == mesh else PartitionSpec()
        self.held_out_shardings = dict.fromkeys(self.batch_avals, NamedSharding(mesh, spec))
        lie = self.state_shardings, self.held_out_shardings
        specs = jax.tree.map(lambda sharding: sharding.spec, lie)
        kept = {name: options[name] for name in ("memory_limit", "time_limit") if name in options}
        return xshard.auto_shard(self.steps.eval, mesh, in_specs=specs, **kept)

    def created(self) -> Any:
        """A new state, already sharded."""
        return self.step.init(self.steps.init, jax.random.key(self.args.seed), self.batch_avals)

    def restored(self, checkpoints: Checkpoints | None) -> Any | None:
        """The latest checkpoint's state, sharded as planned; None where there is none."""
        state = checkpoints and checkpoints.restore(self.state_avals, self.state_shardings)
        if state is not None:
            self.report.resumed(int(state["step"]))
        return state

    def run(self, state: Any, checkpoints: Checkpoints | None) -> Any:
        """Trains up to the wanted step; the next batch is read while the devices work."""
        first, last = int(state["step"]), self.args.steps
        self.report.start(first, last)
        batch = self._batch(self.text.train, first)
        for i in range(first, last):
            start_s = time.perf_counter()
            state, metrics = self.step(state, batch)
            batch = self._batch(self.text.train, i + 1)
            values = {name: float(value) for name, value in metrics.items()}
            self._timed(i - first, time.perf_counter() - start_s)
            self.report.step(i + 1, values, self.tokens_per_s)
            self._after(i + 1, state, checkpoints)
        if checkpoints:
            checkpoints.close()
        return state

    def held_out_loss(self, state: Any) -> float:
        """Mean loss in nats per token over the same few held-out batches every time."""
        state, lie = self.step.portable(state), self.held_out_shardings
        batches = (self._batch(self.text.held_out, i, lie) for i in range(EVAL_BATCHES))
        return statistics.fmean(float(self.evaluate(state, batch)["loss"]) for batch in batches)

    @property
    def tokens_per_s(self) -> float | None:
        """Throughput over the timed steps."""
        if not self.times_s:
            return None
        return self.config.tokens_per_step / statistics.median(self.times_s)

    def facts(self) -> dict[str, float | None]:
        """Prediction and measurement: seconds a step, bytes a device, throughput."""
        plan, rate = self.step.plan, self.tokens_per_s
        return {
            "predicted_time_s": plan.predicted_time_s,
            "measured_time_s": statistics.median(self.times_s) if self.times_s else None,
            "predicted_bytes": plan.predicted_peak_bytes,
            "measured_bytes": self.compiled and _allocated_bytes(self.compiled),
            "tokens_per_s": rate,
            "model_flops_per_s": rate and rate * self.config.model_flops_per_token,
        }

    def _batch(self, corpus: Corpus, i: int, shardings: Any = None) -> Any:
        return put_batch(corpus, i, self.batch_avals, shardings or self.batch_shardings)

    def _timed(self, steps_before: int, time_s: float) -> None:
        if steps_before >= WARMUP_STEPS:
            self.times_s.append(time_s)

    def _after(self, step: int, state: Any, checkpoints: Checkpoints | None) -> None:
        """Evaluates and saves where it is time to; the last step always is."""
        args, last = self.args, step == self.args.steps
        if last or (args.eval_every and step % args.eval_every == 0):
            self.report.held_out(step, self.held_out_loss(state))
        if checkpoints and (last or step % args.checkpoint_every == 0):
            checkpoints.save(step, self.step.portable(state))


def _options(args: Arguments) -> dict[str, Any]:
    """What the command line says to `auto_shard`; the library's defaults stand for the rest."""
    limit, kind = args.memory_limit, xshard.PipelinePlan if args.pipeline else xshard.Plan
    options = {
        "memory_limit": int(limit) if limit and limit.isdecimal() else limit,
        "time_limit": args.time_limit,
        "plan": kind.load(args.plan) if args.plan else None,
        "microbatches": args.microbatches,
        "pipeline": args.pipeline,
        "schedule": args.schedule,
    }
    return {name: value for name, value in options.items() if value is not None}


def _allocated_bytes(compiled: Any) -> int | None:
    """What XLA allocates on each device for one step: arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes
