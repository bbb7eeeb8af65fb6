"""Builds an index out of a sharded corpus and searches it: `build_index`, `open_index`."""
