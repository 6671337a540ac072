"""Tests of `twisted_paxos.storage`."""
