"""Tests of `twisted_paxos.statemachine`."""
