"""What makes one kind of machine faster: each entry computes what the plain networks compute."""
