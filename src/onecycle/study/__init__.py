"""Studies: runs of several variants with several seeds each, and the statistics of these runs."""
