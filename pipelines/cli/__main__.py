"""Runs the command as `python -m pipelines.cli`, if no console script is installed."""

from pipelines.cli import main

main()
