"""`python -m candid` is the command `candid`."""

from candid.cli import main

main()
