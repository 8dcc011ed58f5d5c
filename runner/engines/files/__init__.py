"""Files as they come, from bytes to records."""
