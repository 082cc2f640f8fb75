"""S, Q and D of a batch of channels, and PSI from them; ``score.py`` is the entry."""
