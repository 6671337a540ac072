"""Bytes <-> messages: between nodes in `peer`, between clients and nodes in `client`."""
