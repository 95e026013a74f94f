"""The command line where its program is not found: ``python -m braingen`` is ``braingen``."""

import sys

from braingen.cli import main

if __name__ == "__main__":
    sys.exit(main())
