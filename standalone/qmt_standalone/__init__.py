"""Everything on one machine: embedded Redis servers, the simulator or a terminal, all roles.

It starts the other parts as processes of their own and looks after them; nothing imports it.
"""
