"""A frozen dual encoder with named sites, the adapters that act there, and the forward pass that joins them."""
