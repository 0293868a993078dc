"""The container engines, behind one interface (see container_engine.py)."""
