"""Memory: device facts, cost tables, and a plan made from a budget before anything loads."""
