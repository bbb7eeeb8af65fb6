"""Checks an index against its invariants, and repairs what can be made again from the table."""
