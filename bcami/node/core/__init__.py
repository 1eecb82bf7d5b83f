"""The whole node without its outside: ordering, endorsement, admission, execution and catch-up in one pure machine.

`NodeCore` takes what happened (a message, a submission, a timer, a durable write) and returns effects in order. The
driver's four duties, in this order: persist, send what rests on it, write blocks, arm timers (design D3, D13). The
simulator drives the same class under virtual time. No asyncio, clock, randomness, sockets or logging in here.
"""
