"""Bench: latency and memory, peers side by side, measured through public names only."""
