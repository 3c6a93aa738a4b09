"""What each method gains: ``make reproduce`` trains, counts and writes docs/results.md."""
