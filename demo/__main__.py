"""`python -m demo`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the demo; returns its exit code."""
    try:
        # The clients take a second to import, in which Ctrl-C must not show a traceback.
        from demo.show import main as show  # noqa: PLC0415 - see above
    except KeyboardInterrupt:
        return 130
    return show()


if __name__ == "__main__":
    sys.exit(main())
