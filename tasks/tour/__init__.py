"""The tour: the walk-through, step by step, on a real cluster (the command `doit tour`)."""
