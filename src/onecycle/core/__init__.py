"""What every room uses: configuration, errors, files, signals, caches, metrics and statistics."""
