"""The Gridveil protocol: encodings, transcripts and the arithmetic on them, without any I/O."""
