"""How good a model is: losses on images held out, and measures of what it draws."""
