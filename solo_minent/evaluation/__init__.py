"""Evaluation: features in, metrics out."""
