"""The page's tabs, one file each: what stands where, and what a click does. No inference."""
