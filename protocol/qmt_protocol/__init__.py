"""The contract between all parts of QMT Bridge.

Codes and markets, key names, the schemas ``t1``/``k1``/``b1`` with their codec, the tables that
history answers have, the job catalogue, the settings that roles share and the one error tree.
Nothing here does I/O beyond its own process (settings, log, the end of standard input), and nothing
here imports another part: every part may import this one.
"""
