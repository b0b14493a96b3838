"""How long torch's threads wait for each other awake in a process that Reverie did not set up.

Reverie has them wait asleep (see `worker`), which leaves the cores to others and slows down one who has them all.
"""

OPENMP_AS_IT_COMES = {"GOMP_SPINCOUNT": "300000"}
"""libgomp's own number, where nobody sets another and there are no more threads than cores."""
