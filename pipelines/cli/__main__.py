"""`python -m pipelines.cli`: the command where no console script is installed."""

from pipelines.cli import main

main()
