"""Tests of what a node serves over HTTP."""
