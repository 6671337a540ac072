"""Tests that others wrote for etcd's clients, run against our nodes; see `tests.compat.run`."""
