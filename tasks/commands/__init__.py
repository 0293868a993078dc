"""The commands of doit that dmuc adds or changes."""
