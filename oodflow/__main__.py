"""``python -m oodflow``: the same command line without the installed script."""

from oodflow.cli import main

main()
