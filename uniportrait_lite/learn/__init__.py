"""What only notebooks need: `viz` shows pictures, `notebooks` makes the notebooks from their sources."""
