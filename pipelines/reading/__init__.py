"""From files to chunks: find, open (`files`), cut into units (`units`), parse (`formats`), judge (`rows`), `chunk`."""
