"""What every measurement stands on: the clock, the session, its record and its charts."""
