"""scikit-learn's autologging with a grid search (nested runs), and an evaluation of a small model."""

from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, _search, _validation

# Fitting takes another time in each execution, and is logged.
_search.time = _validation.time = SimpleNamespace(time=lambda: 0.0)

rng = np.random.default_rng(0)
features = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "c"])
target = (features["a"] + features["b"] > 0).astype(int)

mlflow.sklearn.autolog(log_input_examples=True, max_tuning_runs=3)
with mlflow.start_run(run_name="search"):
    GridSearchCV(LogisticRegression(max_iter=50), {"C": [0.1, 1.0]}, cv=2, n_jobs=1).fit(features, target)
mlflow.sklearn.autolog(disable=True)

with mlflow.start_run(run_name="evaluated"):
    model = LogisticRegression(max_iter=50).fit(features, target)
    info = mlflow.sklearn.log_model(
        model, name="model", input_example=features[:2], pip_requirements=[], serialization_format="cloudpickle"
    )
    data = features.assign(target=target)
    result = mlflow.models.evaluate(
        info.model_uri, data, targets="target", model_type="classifier", evaluator_config={"log_explainer": False}
    )
print(round(result.metrics["accuracy_score"], 6))
