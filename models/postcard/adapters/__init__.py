"""What postcard learns beside its weights: three LoRAs, a ControlNet of edges, and what tells whether they work."""
