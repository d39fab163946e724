"""Looking at what was trained: complexity, tables and pictures."""
