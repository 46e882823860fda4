"""An HTTP service and a page over a saved `ncf.Recommender`: ``python -m ncf.serve FOLDER``."""
