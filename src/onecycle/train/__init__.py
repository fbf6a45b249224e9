"""Training: the loop, the one-cycle schedule, the learning-rate finder and the optimizers."""
