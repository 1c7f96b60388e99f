"""Side-by-side measurements against peers: `python -m benchmarks` measures the table of docs/speed.md."""
