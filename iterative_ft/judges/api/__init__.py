"""The judge behind an endpoint: one call (`transport`, `completion`), and asking about a block (`endpoint`, `replies`)."""
