"""Side by side with what one would use instead; docs/benchmarks.md says how to read the figures."""
