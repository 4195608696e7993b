"""Training losses and steps as a research script would write them, and the comparison of the library with them."""
