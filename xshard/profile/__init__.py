"""Measuring what ops and collectives cost on the devices that are here."""
