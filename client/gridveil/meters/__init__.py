"""Real meters at the edge: registers read, intervals made, reports recorded.

``registers`` and ``intervals`` decide and do no I/O; ``p1`` reads telegrams; ``sources`` are where
their bytes come from; ``state`` is what outlives a restart; ``gateway`` puts them together. Needs
the extra ``gridveil[meters]``; importing this package does not.
"""
