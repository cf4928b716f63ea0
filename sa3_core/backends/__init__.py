"""What makes one kind of machine faster, with the same result."""
