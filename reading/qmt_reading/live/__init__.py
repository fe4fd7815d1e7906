"""Following a feed: its entries, asking for more, what streams have that it has no more."""
