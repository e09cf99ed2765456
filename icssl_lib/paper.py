"""The paper's Tables 1 and 2: Chen and Chou, *Utilizing Cross-Modal Contrastive Learning to Improve Item Categorization
BERT Model*, ECNLP 2022. A dataset of ours has a counterpart where it bears a genre's name."""

import pandas as pd

# Table 1: products, classes and mean title length in words, of the whole genre.
TABLE1 = pd.DataFrame(
    [("automotive", 200_907, 953, 9.91), ("beauty", 199_757, 229, 10.26), ("electronics", 107_947, 500, 14.88)],
    columns=["dataset", "products", "classes", "words"],
)

# Table 2: Test accuracy by fraction of Train; one number per cell, without seeds or intervals.
_ACCURACY = {
    ("automotive", "origin"): (0.473, 0.563, 0.648, 0.685, 0.702, 0.718),
    ("automotive", "simcse"): (0.499, 0.574, 0.646, 0.690, 0.709, 0.720),
    ("automotive", "convirt"): (0.563, 0.617, 0.668, 0.697, 0.712, 0.721),
    ("beauty", "origin"): (0.526, 0.577, 0.618, 0.642, 0.659, 0.661),
    ("beauty", "simcse"): (0.525, 0.577, 0.616, 0.643, 0.659, 0.669),
    ("beauty", "convirt"): (0.599, 0.623, 0.633, 0.663, 0.670, 0.676),
    ("electronics", "origin"): (0.319, 0.428, 0.539, 0.575, 0.599, 0.615),
    ("electronics", "simcse"): (0.344, 0.441, 0.533, 0.583, 0.604, 0.618),
    ("electronics", "convirt"): (0.483, 0.533, 0.581, 0.601, 0.619, 0.626),
}
TABLE2 = pd.DataFrame(_ACCURACY, index=[0.05, 0.1, 0.25, 0.5, 0.75, 1.0]).unstack()
TABLE2 = TABLE2.rename_axis(["dataset", "method", "fraction"]).rename("accuracy").reset_index()
