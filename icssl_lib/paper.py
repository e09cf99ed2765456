"""The paper's Tables 1 and 2: Chen and Chou, *Utilizing Cross-Modal Contrastive Learning to Improve Item Categorization
BERT Model*, ECNLP 2022. A dataset of ours has a counterpart where it bears a genre's name."""

from pathlib import Path

import pandas as pd

# dataset, products, classes, words (mean length of a title), of the whole genre
TABLE1 = pd.read_csv(Path(__file__).with_name("paper_table1.csv"))
# dataset, method, fraction, accuracy on Test: one number per cell, without seeds or intervals
TABLE2 = pd.read_csv(Path(__file__).with_name("paper_table2.csv"))
