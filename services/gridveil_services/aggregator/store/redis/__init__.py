"""The store in Redis: the only package that imports redis-py."""
