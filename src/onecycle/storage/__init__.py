"""The files of a run: run folder, records and checkpoints."""
