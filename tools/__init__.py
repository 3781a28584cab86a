"""What only the developers run: it is no part of the wheel."""
