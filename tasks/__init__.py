"""The tasks: one module per component, file or object of the walk-through."""
