"""Durable state: what a node must find again after a crash, and the ways to keep it.

`providers` finds the providers; `wal` (``file:``), `sqlite` and `memory` are ours. `queued` is what
they share: one write queue with group commit. `docs/storage-format.md` describes the bytes.
"""
