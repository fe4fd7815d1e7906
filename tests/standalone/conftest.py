"""Fixtures of `standalone_runs`."""

from standalone_runs import demo, make_demo

__all__ = ["demo", "make_demo"]
