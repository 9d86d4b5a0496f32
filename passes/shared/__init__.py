"""What several passes share, and no pass: what computes the same written in another way (`affine`, `block_diagonal`),
subgraphs that are found and written (`patterns`, `activations`), what stays in float32 (`reduced_precision`)."""
