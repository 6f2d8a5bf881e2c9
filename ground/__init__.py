"""What every package may stand on: files that are written whole, locks, and the terminal. Imports nothing of ours."""
