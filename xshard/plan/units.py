"""Figures and shardings in words: `12.3 ms`, `1.5 GB`, `P('data', None)`, `k→model`."""

from __future__ import annotations

from collections.abc import Callable

from xshard.spec import MeshShape, Spec

_TIMES = ("ns", "µs", "ms", "s")
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def duration(ns: float) -> str:
    """Nanoseconds with three digits: `850 ns`, `12.3 ms`."""
    return _scaled(ns, _TIMES)


def size(nbytes: float) -> str:
    """Bytes with three digits in powers of 1000, so that a limit of "30GB" prints as `30 GB`."""
    return _scaled(nbytes, _SIZES)


def change(before: int, after: int, unit: Callable[[float], str]) -> str:
    """A difference with its sign and share: `+1.2 ms (+10.0%)`; `none` if there is none."""
    if before == after:
        return "none"
    sign = "+" if after > before else "-"
    share = f" ({sign}{abs(after - before) / before:.1%})" if before else ""
    return f"{sign}{unit(abs(after - before))}{share}"


def optimality(objective_ns: int, bound_ns: int) -> str:
    """How far the plan may be from the best one; the share is rounded up, so that it holds."""
    if objective_ns <= bound_ns:
        return "proven optimal under this cost model"
    if bound_ns <= 0:
        return "no bound is known: the best plan may be faster"
    share = -((bound_ns - objective_ns) * 1000 // bound_ns) / 10
    return f"within {share:.1f}% of the best under this cost model"


def spec_text(spec: Spec, names: tuple[str, ...]) -> str:
    """The `PartitionSpec` that a user would write; `P()` is whole on every device."""
    if not any(spec):
        return "P()"
    return f"P({', '.join(_dim_text(dim, names) for dim in spec)})"


def strategy_text(factors: tuple[str | None, ...], names: tuple[str, ...]) -> str:
    """Which mesh axes split which factor: `k→model, b→data`; `whole` if none is split."""
    axes: dict[str, list[str]] = {}
    for factor, name in zip(factors, names, strict=True):
        if factor is not None:
            axes.setdefault(factor, []).append(name)
    return ", ".join(f"{factor}→{'×'.join(split)}" for factor, split in axes.items()) or "whole"


def array_text(shape: tuple[int, ...], dtype: str) -> str:
    """`float32[8,16]`."""
    return f"{dtype}[{','.join(map(str, shape))}]"


def mesh_text(mesh: MeshShape) -> str:
    """`data=2×model=4 (8 devices)`."""
    return f"{mesh} ({mesh.num_devices} device{'s' if mesh.num_devices > 1 else ''})"


def _dim_text(dim: tuple[int, ...], names: tuple[str, ...]) -> str:
    quoted = [repr(names[a]) for a in dim]
    return "None" if not dim else quoted[0] if len(dim) == 1 else f"({', '.join(quoted)})"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{_three(value)} {unit}"
        value /= 1000
    return f"{_three(value)} {units[-1]}"


def _three(value: float) -> str:
    """Three significant digits, all digits before the point."""
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
