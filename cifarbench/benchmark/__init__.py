"""Speed as a result: rates of the loop and its parts, and time to an accuracy over several seeds."""
