"""A study: many runs over seeds and variants, and their statistics."""
