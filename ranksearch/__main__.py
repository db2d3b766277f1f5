"""`python -m ranksearch`: the same as the `ranksearch` command, for an interpreter named by its path."""

from ranksearch.cli import main

main()
