"""A witness: cosigns checkpoints of logs that only grow, and remembers the newest of each."""
