"""A terminal that is not there: a market from a seed, a terminal process, a native stub, an oracle.

`qmt_simulator.native` takes the place of xtquant's native module in the producer's and the
worker's processes and speaks over loopback to the process that `qmt-simulator` starts.
`qmt_simulator.control` and `qmt_simulator.oracle` serve tests and benchmarks. Nothing of the
rest of the project is imported here.
"""
