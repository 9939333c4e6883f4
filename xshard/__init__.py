"""Automatic parallelization for JAX: `auto_shard` a train step, `plan` it for any cluster,
`verify` the plan with the real compiler."""

from xshard.api import auto_shard, plan, plan_pipeline
from xshard.cost.cluster import Cluster
from xshard.errors import (
    InfeasibleError,
    MeshError,
    PinError,
    PipelineError,
    PlanError,
    RuleError,
    TraceError,
    VerifyError,
    XshardError,
)
from xshard.mpmd.plan import PipelinePlan
from xshard.plan.plan import Plan
from xshard.proof import verify
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape
from xshard.verify.stages import PipelineVerification
from xshard.verify.verification import Verification

__all__ = [
    "Cluster",
    "InfeasibleError",
    "MeshError",
    "MeshShape",
    "PinError",
    "PipelineError",
    "PipelinePlan",
    "PipelineVerification",
    "Plan",
    "PlanError",
    "RuleError",
    "ShardedStep",
    "TraceError",
    "Verification",
    "VerifyError",
    "XshardError",
    "auto_shard",
    "plan",
    "plan_pipeline",
    "verify",
]
