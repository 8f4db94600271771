"""Evaluation: what is measured, measuring it, and tables of what was measured."""
