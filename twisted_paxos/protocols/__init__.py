"""Between the pure roles and the outside: datagrams, links, and the order of effects."""
