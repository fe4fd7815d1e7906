"""``python -m qmt_client`` is ``qmt``."""

from .cli import main

if __name__ == "__main__":
    main()
