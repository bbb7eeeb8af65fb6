"""Reads files as chunks: `files` opens, `units` splits, `formats` parses, `documents` validates, `chunk` chunks."""
