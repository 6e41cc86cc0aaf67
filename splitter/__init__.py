"""Plain Python below the flows: what a notebook could call to split an export into batches."""
