"""What every process of the bridge does with its machine: logs, children, waiting before a retry.

Nothing here knows of market data. Every package may import it but protocol, which has no I/O.
"""
