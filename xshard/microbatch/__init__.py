"""Microbatches: an unmodified step as a loop over parts of its batch, with the same results."""
