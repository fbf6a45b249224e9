"""Images on disk: listed, indexed, decoded once, cached and mapped."""
