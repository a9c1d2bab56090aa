"""CausalDAO's Flower app: two names, both of the installed package."""
