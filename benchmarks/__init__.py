"""Ratios of this project to others on the same work: `python -m benchmarks`, and README.md here says what each row measures."""
