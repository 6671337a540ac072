"""Tests of `twisted_paxos.core`."""
