"""Serves built indexes over HTTP and MCP: search, embeddings, reranking, and a page to look at the answers."""
