"""Real meters at the edge: registers read, intervals made, reports recorded; files made a history.

``registers``, ``intervals``, ``still``, ``validation`` and ``history`` decide and do no I/O. ``p1``
reads telegrams; ``frames``, ``cosem`` and ``dlms`` read pushes; ``espi``, ``nem12`` and
``meter_csv`` read files of interval values into ``slots``. ``sources`` are where bytes come from,
``state`` is what outlives a restart, ``gateway`` follows a home and ``following`` its source;
``homes`` and ``fleet`` are many of them. Needs the extra ``gridveil[meters]``; importing this
package does not.
"""
