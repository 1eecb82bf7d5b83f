"""What the papers print, with the place of each figure, and their formulas. No figure of ours is in here."""
