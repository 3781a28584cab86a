"""What the package's two web applications share: who gets in, and what no request may do. Needs `starlette`."""
