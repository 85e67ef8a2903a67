"""Sets up a city: keys, certificates and configuration."""
