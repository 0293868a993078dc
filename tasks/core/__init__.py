"""What the tasks stand on; knows no component by name."""
