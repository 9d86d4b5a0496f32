"""How well engines do: data sets, figures, comparisons."""
