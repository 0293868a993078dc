"""One module per thing that the walk-through starts, writes or creates."""
