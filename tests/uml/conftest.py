"""The end-to-end tests on the other kernel, which is slow: it has one processor, and each system call costs."""

from __future__ import annotations

import os

# Before tests.e2e.conftest reads the environment.
os.environ |= {"DMUC_DEADLINE": "600", "DMUC_PATIENCE": "10"}
