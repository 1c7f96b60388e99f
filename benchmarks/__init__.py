"""Side-by-side measurements against peers: `python -m benchmarks` measures what the README's table shows."""
