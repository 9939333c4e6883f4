"""Check a plan against the real compiler: the collectives that XLA emitted, and their bytes."""
