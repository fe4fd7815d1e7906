"""A door to a simulated terminal."""

from qmt_protocol.settings import TerminalSettings
from qmt_terminal import Terminal


def open_terminal(port: int) -> Terminal:
    """Return an unconnected door to the terminal at a port."""
    return Terminal(TerminalSettings(terminal_port=port, native_module="qmt_simulator.native"))
