"""Jobs for the terminal: put into their queue, followed to their end, their results read."""
