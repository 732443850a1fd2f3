"""Losses over the vectors of a batch, with their gradients."""
