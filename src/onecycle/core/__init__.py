"""Code that all subpackages share: configuration, recipes, errors, files, signals, caches, metrics and statistics."""
