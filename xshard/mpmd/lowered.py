"""What `step.lower` gives for a pipeline: its programs, as `jax.stages` has them, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class TracedPipeline:
    """What `step.trace` gives for a pipeline, which is many programs: it can be lowered."""

    lower: Callable[[], LoweredPipeline]


@dataclass(frozen=True)
class LoweredPipeline:
    """The programs of this process's groups, lowered.

    Attributes:
      programs: "fwd of stage 1" and the like -> as `jax.jit(...).lower(...)` gives it.
      call: the step.
    """

    programs: Mapping[str, jax.stages.Lowered]
    call: Callable[..., Any]

    def as_text(self, dialect: str | None = None) -> str:
        """Of all programs, each under its name."""
        return _texts({name: p.as_text(dialect) for name, p in self.programs.items()})

    def compile(self, compiler_options: Any = None) -> CompiledPipeline:
        """Compiles all programs."""
        return CompiledPipeline(
            {name: p.compile(compiler_options) for name, p in self.programs.items()}, self.call
        )


@dataclass(frozen=True)
class CompiledPipeline:
    """The programs of this process's groups, compiled; called as the step is.

    Attributes:
      programs: by name; each has its own `memory_analysis()` and `cost_analysis()`.
    """

    programs: Mapping[str, jax.stages.Compiled]
    call: Callable[..., Any]

    def as_text(self) -> str:
        """Of all programs, each under its name."""
        return _texts({name: p.as_text() or "" for name, p in self.programs.items()})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


def _texts(texts: Mapping[str, str]) -> str:
    return "\n".join(f"// {name}\n{text}" for name, text in texts.items())
