"""The networks of Stable Audio 3."""
