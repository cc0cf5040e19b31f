"""What `scripts/fuzz.py` and `scripts/damage.py` share: real records, spoilt inputs, and a cage for one command."""
