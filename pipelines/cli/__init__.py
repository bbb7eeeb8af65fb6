"""Defines the `tridex` command."""

from __future__ import annotations

import os
import sys

from pipelines.cli import exports, jobs, models, searching, serving
from pipelines.cli.app import app

__all__ = ["app", "exports", "jobs", "main", "models", "searching", "serving"]


def main() -> None:
    """Runs the command line; entry point of the console script."""
    os.environ.setdefault("LANCE_LOG", "error")  # Lance warns of tables that do not exist yet
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal in the C locale
    app()
