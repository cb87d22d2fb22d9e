"""`python -m kvtq_hw` is `kvtq-hw`."""

from kvtq_hw.cli import main

main()
