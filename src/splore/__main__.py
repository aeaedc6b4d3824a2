"""`python -m splore` is the command line."""

from splore.cli import main

main()
