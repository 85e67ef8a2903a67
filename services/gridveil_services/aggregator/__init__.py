"""The aggregator: adds ciphertexts and holds no secret of the scheme."""
