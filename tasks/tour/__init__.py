"""The walk-through, step by step, on a real cluster: `doit tour`."""
