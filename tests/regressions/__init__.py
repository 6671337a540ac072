"""Seeds of the simulator that once found a fault."""
