"""`verify`: a plan's step compiled by XLA for the plan's own devices, which need not be here."""

from xshard.proof.dispatch import verify

__all__ = ["verify"]
