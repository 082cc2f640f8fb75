"""Array operations: one file per op, with its torch path and, where there is one, its kernel."""
