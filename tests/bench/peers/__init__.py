"""What others serve diffusion models with, each set up as its users would, as processes of their own."""
