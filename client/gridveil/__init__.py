"""Privacy-preserving smart-meter aggregation: protocol, meter and operator library."""
