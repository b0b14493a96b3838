"""What clients of the OpenAI images API send and expect, in terms of this gateway."""
