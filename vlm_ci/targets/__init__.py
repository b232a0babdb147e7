"""What is tested: a model with an eager and a compiled way to answer a batch."""
