"""The HTTP API: one module per group of routes, each with its request and response schemas."""
