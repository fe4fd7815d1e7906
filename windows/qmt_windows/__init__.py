"""The Windows box as one thing: starts producer and worker, watches the terminal's day.

It imports protocol and terminal; producer and worker it starts as processes. Nothing imports it.
"""

__all__: list[str] = []
