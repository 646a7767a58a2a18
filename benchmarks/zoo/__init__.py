"""Models of many libraries, with random weights, and an oracle that knows nothing of reludiag."""
