"""The HTTP door of a node: for meters, the MDMS, operators and people (design D1, D17).

What a gateway says is not to be believed: outcomes carry receipts that a client checks with genesis alone, reads are
labelled with their height (protocol 5.3, 5.6).
"""
