"""Workflows: one module an entry point, joining data, training, evaluation and tracking."""
