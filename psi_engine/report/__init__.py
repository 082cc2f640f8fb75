"""What a finished run looks like to a reader; nothing here recomputes a score."""
