"""A causal graph for people and for other programs: SVG, an interactive page, DOT, GraphML."""
