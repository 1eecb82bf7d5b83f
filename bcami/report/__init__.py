"""Reports: what a researcher would put into a paper, from one command, honest about where each number comes from.

    document   what a report says: sections, tables, figures; nothing about how it looks
    charts     figures as SVG and PNG (matplotlib)
    folder     the folder that a report leaves: one page, figures, a CSV for each table, one JSON
    difference two reports compared
    measuring  CPU time of a call: median, quartiles, n
    machine    what was measured on
    papers/    the figures that papers print, with their places, and nothing else
    costs/     `bcami report costs`, a module for each part
    capacity/  `bcami report capacity`
    security/  `bcami report security`: attacks, their transcripts and verdicts

A number is *printed* (in a paper), *recomputed* (from that paper's own formula) or *measured* (here, now, on the
objects that the system runs on). Each has a column of its own, and only measured columns differ between two runs.
"""
