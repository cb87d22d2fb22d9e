"""The parts of docs/integration.md that are taken from the sources: tables and timing diagrams."""
