"""Systems that retrieve text and read it anew."""
