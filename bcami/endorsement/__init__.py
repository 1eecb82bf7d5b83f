"""Dissemination and endorsement of batches before ordering (design D2, protocol 4). Pure step machines.

A *lane* is one collector's numbered sequence of batches. The collector side (`collector.py`) cuts batches, keeps
them durable, sends them to every node and gathers endorsements into a batch certificate. The endorser side
(`endorser.py`) checks each transaction, makes the batch durable and answers with a signed endorsement that carries
what it refuses. One digest is endorsed per (collector, number); a stuck lane hurts only its own collector.
"""
