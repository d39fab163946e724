"""Making and checking data sets."""
