"""Faults as a first-class thing: what a node can be told to do wrong, scenarios, and what must hold all the same.

    behaviour   what a behaviour may do, in one class         node       a node that shows behaviours under a lease
    silence, primary, votes, views, batches, answers, links, disk   the behaviours
    catalogue   the one list of them
    scenario    a timeline and its expectations, as a file    verdict    judges what a run saw

The same behaviours run under the simulator's virtual time and in a live node, because they act on the messages and
decisions of `bcami.node.core` and nowhere else. They are pure: no clock, no threads, all randomness from a seed. A
behaviour may lie in everything that its own node signs, and can sign for nobody else: that is what a stolen or
modified node can do, and no more.

A live node loads this package only if genesis says that its network was made with `--allow-faults` (design D14).
"""
