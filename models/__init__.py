"""What is learnt: graphs, discovery, identification, effects, structural causal models."""
