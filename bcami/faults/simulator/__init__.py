"""A whole network in one process under virtual time: `bcami simulate` (design D13).

    events     virtual time                      signing   the two signature schemes
    network    links that lose, delay, replay    disk      what a crash keeps, and what a bad disk does
    node       one node: imitates the driver     load      clients that never give up
    plan       what a seed draws (the swarm)     saboteur  faults as they happen
    oracles    I1 … I15                          replay    the chain executed again from genesis
    cluster    all of it together                runner    seeds, one after the other or in processes
    trace      one dense line for each step, and its hash

The nodes run the very code of `bcami.node.core` and everything below it. Replaced are the driver, the transport and
the stores on disk, by imitations that keep their promises and no more: sends wait for the group of promises before
them, a group or a block is written whole or not at all, links may lose and reorder.

One seed decides everything. Each part draws from its own stream, and nothing iterates over a set or reads a clock, so
that the same seed gives the same trace on any machine and under any PYTHONHASHSEED.
"""
