"""Consensus for Twisted: a durable Multi-Paxos service and library."""

__version__ = "0.1.0"
