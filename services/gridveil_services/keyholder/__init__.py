"""The key-holder: opens city-wide totals and nothing else."""
