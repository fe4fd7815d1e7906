"""The rigs of other folders."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS / name) for name in ("worker", "docker", "gateway")]
