"""`python -m ts2_lightning.cli COMMAND`; also run by path when another local rank is started."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started by its path, Python puts this file's directory first, where `commands.py` and others would shadow names.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.path.append(str(Path(__file__).resolve().parents[2]))

    from ts2_lightning.cli import main

    sys.exit(main())
