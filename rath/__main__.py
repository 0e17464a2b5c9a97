"""``python -m rath``: the command line."""

import sys

from rath.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
