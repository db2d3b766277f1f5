"""The command line. It parses, calls the library and prints; it decides nothing.

entry       the program: its commands, errors, exit codes and signals
options     flags that several commands share
output      tables, JSON and CSV on stdout
figures     numbers as people read them
run, progress            `run`, and what it shows meanwhile
queries, show            what a database holds
doctor, profile, export, database, submit
"""

from ranksearch.cli.entry import main

__all__ = ["main"]
