"""Running: a run is saved whole, resumed as it was, and alone in its work dir."""
