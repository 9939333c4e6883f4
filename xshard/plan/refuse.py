"""A plan is used only for the function, shapes, mesh and devices that it was made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from xshard.errors import PlanError
from xshard.plan.plan import Plan, PlannedArray
from xshard.plan.units import array_text
from xshard.spec import MeshShape

_MEND = "plan again for this call, or pass the plan that belongs to it"


class Aval(Protocol):
    """Anything with a shape and a dtype."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


def check_fits(
    plan: Plan,
    fingerprint: str,
    mesh: MeshShape,
    in_paths: Sequence[str],
    in_avals: Sequence[Aval],
    cluster: str | None = None,
) -> None:
    """Returns if the plan belongs to this call.

    Args:
      fingerprint, mesh, cluster: of the call; cluster None is not compared.
      in_paths, in_avals: its flattened arguments.

    Raises:
      PlanError: says the first thing that differs: arguments, shapes, mesh, cluster, function.
    """
    call = {path: _array(aval) for path, aval in zip(in_paths, in_avals, strict=True)}
    for reason in (
        _arguments(plan.arguments, call),
        _mesh(plan.mesh, mesh),
        _cluster(plan.cluster, cluster),
        _function(plan.fingerprint, fingerprint),
    ):
        if reason:
            raise PlanError(f"the plan does not belong to this call: {reason}; {_MEND}")


def _arguments(planned: Sequence[PlannedArray], call: dict[str, str]) -> str:
    ours = {a.path: array_text(a.shape, a.dtype) for a in planned}
    missing = [path for path in ours if path not in call]
    unknown = [path for path in call if path not in ours]
    differs = [path for path in ours if path in call and ours[path] != call[path]]
    if differs:
        path = differs[0]
        return f"{path} is {ours[path]} in the plan and {call[path]} here{_more(differs)}"
    if missing:
        return f"the plan has an argument {missing[0]} that the call lacks{_more(missing)}"
    if unknown:
        return f"the call has an argument {unknown[0]} that the plan lacks{_more(unknown)}"
    return "" if list(ours) == list(call) else "the arguments stand in another order"


def _mesh(planned: MeshShape, mesh: MeshShape) -> str:
    return "" if planned == mesh else f"it is for the mesh {planned}, and the mesh here is {mesh}"


def _cluster(planned: str, cluster: str | None) -> str:
    if cluster is None or planned == cluster:
        return ""
    return f"it is for the cluster {planned}, and the cluster here is {cluster}"


def _function(planned: str, fingerprint: str) -> str:
    if planned == fingerprint:
        return ""
    return (
        "arguments and mesh agree, but the function, its pins or its options are not those that "
        f"were planned (fingerprint {planned[:12]}, here {fingerprint[:12]})"
    )


def _more(paths: Sequence[str]) -> str:
    return f" (and {len(paths) - 1} more arguments)" if len(paths) > 1 else ""


def _array(aval: Aval) -> str:
    return array_text(tuple(aval.shape), str(getattr(aval.dtype, "name", aval.dtype)))
