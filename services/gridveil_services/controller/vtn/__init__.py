"""What is sent to a VTN (OpenADR 3.1), and what becomes of it. No signal waits for it."""
