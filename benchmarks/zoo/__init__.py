"""Every config of the wheels as a student: found, shrunken, tried, noted, and told on a page."""
