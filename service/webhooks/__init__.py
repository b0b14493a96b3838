"""Tells a client's own server when its job has ended: who may be told, how it is signed, and until when it is tried."""
