"""What a classifier gets wrong and what it looked at: errors, heatmaps and the pictures of both."""
