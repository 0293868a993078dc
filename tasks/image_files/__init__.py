"""The images of the walk-through, built from Debian packages."""
