"""The doit commands, one file each; base.py is what they share."""
