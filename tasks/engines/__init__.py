"""The container engines, behind one interface (interface.py); `engine=` chooses one (chosen.py)."""
