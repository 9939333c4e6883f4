"""Every error that xshard raises on purpose: what, where, why, and the mend, in one message."""

from __future__ import annotations


class XshardError(Exception):
    """Base of all errors that xshard raises about its input."""


class TraceError(XshardError):
    """What was given is no function, or its arguments are not what it can be traced with."""


class RuleError(XshardError):
    """An op rule contradicts the shapes of its op: a bug in the rule, not in the user's program."""


class PinError(XshardError):
    """A pin cannot hold: it names an unknown axis, has the wrong rank or does not divide."""


class MicrobatchError(XshardError):
    """The step cannot be split into so many microbatches: it is no sum over the batch, say."""


class RematError(XshardError):
    """The option of what to recompute is none, or a plan recomputes layers that are not there."""


class PipelineError(XshardError):
    """The step cannot be cut into so many pipeline stages, or at those boundaries."""


class MeshError(XshardError):
    """The mesh or cluster does not fit the devices or cannot be read."""


class InfeasibleError(XshardError):
    """No plan fits: carries the smallest memory limit that would work.

    Attributes:
      smallest_limit_bytes: the smallest per-device limit for which a plan exists; None when no
        limit helps (the pins contradict each other).
    """

    def __init__(self, message: str, smallest_limit_bytes: int | None = None) -> None:
        super().__init__(message)
        self.smallest_limit_bytes = smallest_limit_bytes


class PlanError(XshardError):
    """A plan file is truncated, foreign, or belongs to another function, mesh or shape."""


class VerifyError(XshardError):
    """A step cannot be compiled for a plan's devices: an extra is missing, or XLA fails."""


class CostError(XshardError):
    """A cost database, or a file of measured costs, cannot be used."""


class ProblemError(XshardError):
    """A file with a problem for the solver cannot be read or contradicts itself."""


class ScheduleError(XshardError):
    """A pipeline schedule is unknown, incomplete, or one in which groups wait for each other."""
