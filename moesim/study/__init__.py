"""Questions asked of the model: run a scenario, compare systems, find where the answer flips."""
