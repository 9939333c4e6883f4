"""Running a plan: constraints in one jitted function."""
