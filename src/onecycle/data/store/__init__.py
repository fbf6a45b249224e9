"""Image files on disk: listing, indexing, decoding, caching and memory mapping."""
