"""Small programs that stand where worker and gateway would, and the journal that they write."""
