"""The totals service: what operators and auditors may read."""
