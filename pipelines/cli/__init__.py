"""The `tridex` command."""

from __future__ import annotations

import sys

from pipelines.cli import jobs, models, searching
from pipelines.cli.app import app

__all__ = ["app", "jobs", "main", "models", "searching"]


def main() -> None:
    """Entry point of the console script."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal in the C locale
    app()
