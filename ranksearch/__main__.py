"""`python -m ranksearch`: the same as the `ranksearch` command, for an interpreter named by its path."""

import sys

from ranksearch.cli import main

if __name__ == "__main__":
    sys.exit(main())
