"""Training data: files of pairs in, batches of token ids out."""
