"""Writes and tends the Parquet days of ticks and bars; reads Redis and nothing else.

It may import client and protocol. Producer, worker and gateway meet it only in Redis and in the
archive folder.
"""
