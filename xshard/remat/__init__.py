"""Rematerialization: layers whose residuals are made again in the backward pass."""
