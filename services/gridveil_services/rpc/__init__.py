"""What the gRPC servers of all roles share."""
