"""What only notebooks need: `viz` shows pictures and plots, `source` the package's code, `checks` judges exercises,
`notebooks` makes the notebooks from their sources, exercises open and solved (`exercises`)."""
