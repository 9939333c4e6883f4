"""Runs a staged step: a program for each stage on its own devices, in the order of a schedule."""
