"""The HTTP port of a node: etcd v3's JSON API, health, metrics and status page."""
