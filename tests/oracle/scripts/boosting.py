"""XGBoost's autologging."""

import mlflow
import numpy as np
import xgboost

rng = np.random.default_rng(0)
features = rng.normal(size=(80, 3))
target = (features[:, 0] > 0).astype(int)

mlflow.xgboost.autolog(log_datasets=True)
with mlflow.start_run(run_name="boosted"):
    data = xgboost.DMatrix(features, label=target)
    xgboost.train(
        {"objective": "binary:logistic", "seed": 0, "nthread": 1}, data, num_boost_round=3, evals=[(data, "train")]
    )
