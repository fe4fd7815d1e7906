"""Measures QMT Bridge on this machine: one module per question, `scripts/bench` runs them.

It may import every part of the project; nothing imports it. Sides of a comparison run in turns
within one run, on servers with the same settings, with the same payload.
"""
