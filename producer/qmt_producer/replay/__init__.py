"""``qmt-producer replay``: a stored day again, under a prefix of its own, as if it were live.

The source of this producer is the archive, read through the client, and this folder alone may
import that; ring, publisher and scripts are those of the live one. It needs neither Windows nor
xtquant.
"""
