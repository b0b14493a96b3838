"""`python -m worker`: serve the jobs of one Redis with the models of one store."""

from worker.queue.start import main

main()
