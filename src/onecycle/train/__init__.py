"""The training loop, its schedule, its learning rates and its optimizers."""
