"""The paper's tables, published numbers, and ours beside them."""
