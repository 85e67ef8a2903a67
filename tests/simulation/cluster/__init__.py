"""A whole cluster in one process: real handlers, and a world around them made from a seed."""
