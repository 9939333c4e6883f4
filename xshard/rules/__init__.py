"""What each primitive does to dimensions: its factors, which are summed, which must stay whole."""
