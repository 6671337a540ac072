"""What a node serves over HTTP."""
