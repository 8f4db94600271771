"""Evaluation: its subjects, their measurement, and tables of the results."""
