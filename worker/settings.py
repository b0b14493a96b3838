"""The settings of the worker process."""
