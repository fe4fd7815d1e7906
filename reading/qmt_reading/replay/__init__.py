"""Stored rows given again at the pace at which they were made, or at any other."""
