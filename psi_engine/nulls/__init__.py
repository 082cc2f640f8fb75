"""What chance would give: one file per family of nulls; their names are in ``registry``."""
