"""A training run: the loop, the step over a large batch, checkpoints, validation and the model card."""
