"""Entry point of a cloned folder: `python cli.py COMMAND` is the same as the installed `ts2 COMMAND`."""

import sys

from ts2_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
