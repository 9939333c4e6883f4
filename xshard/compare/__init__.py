"""A sharded step against the same step on one device, and the equation where they part."""
