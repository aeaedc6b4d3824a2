"""Neural networks made small and fast: every weight learned as a low-rank plus a sparse matrix, W = A·B + S."""
