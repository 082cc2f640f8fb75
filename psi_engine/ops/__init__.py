"""Array operations: one file per op, each with its torch path and, where there is one, its kernel."""
