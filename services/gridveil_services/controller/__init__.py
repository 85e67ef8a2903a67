"""The controller: verified totals in, control signals out. It holds no secret of the scheme."""
