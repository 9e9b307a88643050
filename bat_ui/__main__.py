"""`python -m bat_ui VERB`: see cli.py."""

import sys

from bat_ui.cli import main

if __name__ == "__main__":
    sys.exit(main())
