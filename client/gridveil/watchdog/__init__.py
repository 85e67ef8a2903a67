"""What goes wrong in a city, seen in what operators see anyway: no reading is needed for it.

:func:`gridveil.watchdog.detector.step` is a pure function of a state and an observation, so what it
found can be found again. Needs the extra ``gridveil[watchdog]``: its statistics are river's.
"""
