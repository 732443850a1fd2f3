"""Cleaning of training pairs: rules, near-duplicates and a consistency filter."""
