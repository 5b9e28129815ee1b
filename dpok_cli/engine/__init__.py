"""The engine: rollouts, objectives, training loops. Nothing here prints or knows of the terminal."""
