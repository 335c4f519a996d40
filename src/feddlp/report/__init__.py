"""What people look at: tables, made from records alone."""
