"""What all other packages use: configuration, recipes, errors, files, signals, caches, metrics and statistics."""
