"""`python -m worker`: serve the jobs of one Redis with the models of one store."""

from worker.start import main

main()
