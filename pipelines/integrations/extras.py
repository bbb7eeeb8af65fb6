"""What an adapter says where its framework is not installed."""

from __future__ import annotations


def missing_extra(extra: str, error: ModuleNotFoundError) -> ImportError:
    """The error to raise: one line with the package that is missing and the extra that brings it."""
    return ImportError(f"pipelines.integrations.{extra} needs {error.name}: pip install 'tridex[{extra}]'")
