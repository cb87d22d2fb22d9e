"""Mutation testing: make small changes to the sources, and find those that no test notices."""
