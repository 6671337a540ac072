"""Tests of `twisted_paxos.wire`."""
