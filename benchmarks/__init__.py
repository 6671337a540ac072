"""Benchmarks of twisted_paxos, run from a checkout; `docs/performance.md` explains them."""
