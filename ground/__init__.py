"""What every package may stand on: whole files, locks, the terminal. Imports nothing of ours."""
