"""The worker: the mathematics, the checkpoints, the engine and the RQ process around them.

Importing it settles how torch's CPU threads wait, which must be known before torch is loaded.
"""

import os

# An OpenMP thread that waits for the others spins for milliseconds. On a core that it shares with another process (a
# training run beside the worker, a neighbour on the host) each of those spins is stolen from the thread waited for: a
# training step of 0.27 s on one thread took 3.1 s on two, and 0.34 s with short spins.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
