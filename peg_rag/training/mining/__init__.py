"""Hard negatives, mined with a first model before training."""
