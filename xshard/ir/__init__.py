"""The program as a flat graph of values and ops, traced from a jaxpr."""
