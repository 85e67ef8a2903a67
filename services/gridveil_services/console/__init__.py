"""The operator's page: the city's demand, what is signalled, and the proof of each total."""
