"""``python -m vlm_ci.cli``."""

from vlm_ci.cli import entry

if __name__ == "__main__":
    entry()
