"""The two training stages: settings, cached data, losses. Each stage is a module with a `main(argv)`."""
