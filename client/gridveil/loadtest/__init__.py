"""Load tests: made-up reports in, exact totals out, and what each answer took (extra ``loadtest``).

:mod:`gridveil.loadtest.run` drives a test; :mod:`gridveil.loadtest.load` says what is sent.
"""
