"""`python -m kvtq_hw` is `kvtq-hw`."""

from kvtq_hw.commands.frame.cli import main

main()
