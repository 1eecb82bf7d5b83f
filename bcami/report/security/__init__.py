"""`bcami report security`: attacks that are carried out, and what became of them.

attack     what an attack is, its transcript, and the verdict, which follows from what was observed
grounds    a whole network in this process: real node cores, meters and an MDMS under virtual time
wire       the two ends of the key management, and everything that was ever on the wire between them
paper      BC-AMI's protocol as its section 4.2 has it, for the same attacks
forward    F1, leaked MDMS keys                   replacement  F2, rogue key shares
messages   F3, F4, F5, malleated signatures       between      F6, concentrators that withhold
identity   F7, HIDs                               replays      F8, other networks
byzantine  F9, F10, leaked node keys              symmetric    key management
tampering  ledgers                                assemble     the report
"""
