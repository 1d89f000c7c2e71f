"""python -m sdcore: the command `sdcore`, where it is not installed."""

import sys

from sdcore.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
