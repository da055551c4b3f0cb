"""moesim: where tokens really go in a Mixture-of-Experts model, and what that costs on real hardware."""
