"""Replay of the London smart-meter data, and its comparison with what the MDMS holds.

    path ─discover─▶ Source ─survey─▶ meters, totals              layouts, sources, survey
                       │
                       └─ReadingStream─▶ chunks of exact readings     lines, fields, rows, seen, rejects, readings
                                  ├─plan─▶ reports ─▶ fleet           plan, resume, runner
                                  └─reconcile─▶ differences           reconcile

Everything streams: memory does not grow with the input, only with the number of meters and months it spans, and
that growth has a limit (`seen.PAGES_MAX`, `meters.METERS_MAX`). Energy never passes through a float.
"""
