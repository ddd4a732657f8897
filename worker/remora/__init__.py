"""Remora: one durable task worker for every scheduler.

Plugin authors import :mod:`remora.plugin` (and :mod:`remora.pace`), door authors :mod:`remora.door`, and both
test with :mod:`remora.testing`. Everything else is the worker's own.
"""

from importlib.metadata import version

__version__ = version("remora")
