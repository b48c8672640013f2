"""`make doctor`: checks what a run needs, one function for each check, and names the command that mends it."""
