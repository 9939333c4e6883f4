"""Automatic parallelization for JAX: `auto_shard` a train step, `plan` it for any cluster."""

from xshard.api import auto_shard, plan
from xshard.cost.cluster import Cluster
from xshard.errors import (
    InfeasibleError,
    MeshError,
    PinError,
    PlanError,
    RuleError,
    TraceError,
    XshardError,
)
from xshard.plan.plan import Plan
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape

__all__ = [
    "Cluster",
    "InfeasibleError",
    "MeshError",
    "MeshShape",
    "PinError",
    "Plan",
    "PlanError",
    "RuleError",
    "ShardedStep",
    "TraceError",
    "XshardError",
    "auto_shard",
    "plan",
]
