"""A data contract, from its document to the SQL of its rules."""
