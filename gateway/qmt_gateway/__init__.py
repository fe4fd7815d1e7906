"""The gateway: REST, WebSocket and the API's own pages over HTTP, on Linux, Mac or Windows.

It reads Redis through ``qmt_reading`` and speaks ``qmt_protocol``; it never talks to a terminal and
imports neither producer nor worker. ``app`` puts it together, ``routes`` holds the paths, ``hub``
shares the live feed between WebSocket clients. Only ``qmt_standalone`` may import it.
"""
