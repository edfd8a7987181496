"""Reading and parsing of the kernel's socket tables."""
