"""The Windows side of the live data: ticks from the terminal into Redis Streams.

A callback puts pushes on a bounded queue, the intake encodes them into a ring on disk, the
publisher moves a cursor along that ring with one Redis call per batch. Nothing imports it.
"""
