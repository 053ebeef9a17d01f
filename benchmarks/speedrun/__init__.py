"""The board of speedruns: its rules and rows. `minicogvx speedrun` makes a row."""
