"""What writes docs/results from the shipped runs: `python -m results.tables` writes every table and figure."""
