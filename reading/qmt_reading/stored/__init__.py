"""Stored rows: archive and streams as one sequence, each row once."""
