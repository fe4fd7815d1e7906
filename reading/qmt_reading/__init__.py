"""Reading what lies in Redis and in the archive: live, stored, replayed, and by jobs.

Client, gateway, archive and the producer that replays are built on it; it imports protocol and
runtime. `transport` is what they ask, `redis_transport` asks Redis itself.
"""
