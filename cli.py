"""Entry point of a cloned folder: `python cli.py COMMAND` is the same as the installed `ts2 COMMAND`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (who runs it with an older one would get a traceback)
    sys.exit("error: ts2_lightning needs Python 3.11 or newer, and this is " + sys.version.split()[0])

from ts2_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
