"""What compiling a target came to when it was last looked at, kept in files, and compared."""
