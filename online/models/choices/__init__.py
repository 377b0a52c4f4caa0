"""Parts of the reward model: interaction features, expert tables, counts by action."""
