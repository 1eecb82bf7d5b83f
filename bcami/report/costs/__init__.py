"""`bcami report costs`: one module for each part; each gives sections, and none knows how they are shown."""
