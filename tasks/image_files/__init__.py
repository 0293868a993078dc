"""The images of the walk-through, made from Debian packages."""
