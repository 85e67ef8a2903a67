"""The operator's console: a page that shows the city's demand, its signals and the proof of each."""
