"""The HTTP gateway: it queues sampling requests and shows their jobs and images. It holds no model and no torch."""
