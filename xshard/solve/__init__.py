"""From plain integers to the best choices: reductions, CP-SAT, search, check."""
