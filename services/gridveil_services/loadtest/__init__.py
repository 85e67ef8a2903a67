"""A city for a load test, made and run on this machine."""
