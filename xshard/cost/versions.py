"""The version of JAX that costs are measured with."""

from __future__ import annotations

from importlib.metadata import version


def jax_version() -> str:
    """Of the JAX that is installed."""
    return version("jax")
