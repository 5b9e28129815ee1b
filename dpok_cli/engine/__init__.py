"""The engine: rollouts, objectives, training loops. Nothing here prints."""
