"""Neural collapse of trained networks, streamed over batches."""
