"""The encoder that is trained, and the vocabulary of a new one."""
