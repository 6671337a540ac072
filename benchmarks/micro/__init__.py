"""Single steps of a command, by pyperf, so that a regression has an address."""
