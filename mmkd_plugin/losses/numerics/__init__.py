"""What makes the losses fast and exact. It is internal: a reader of a paper need not enter."""
