"""Everything that fnostab says to MLflow, and hears from it; no other package imports MLflow."""

import logging

# Of MLflow 3.17, `mlflow.pytorch` sets the root logger to ERROR when it is first used; what we warn of is said even so.
logging.getLogger("fnostab").setLevel(logging.WARNING)
