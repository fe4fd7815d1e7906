"""Following live data, without I/O: what comes next, each tick once, or a gap with a name.

`FeedOffset` is where a reader stands in one market's feed; `Cursor` is what it was given of all
its markets, and what it has to be given; `Progress` is how far its user has taken that. Redis, the
gateway's WebSocket, its hub and the archive are thin shells around them: they read what is asked
for and hand in what they found.
"""
