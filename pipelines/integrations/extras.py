"""Builds the error for a framework that is not installed."""

from __future__ import annotations


def missing_extra(extra: str, error: ModuleNotFoundError) -> ImportError:
    """Returns the error to raise: one line with the missing package and the extra that installs it."""
    return ImportError(f"pipelines.integrations.{extra} needs {error.name}: pip install 'tridex[{extra}]'")
