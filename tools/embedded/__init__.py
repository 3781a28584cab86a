"""How the embedded model is made and measured: its world, its training, its examination, and the pages about it."""
