"""A training that logs with MLflow and has never heard of mlferry: autologging, a metric by hand, a model.

MLFLOW_TRACKING_URI=spool: python examples/mlflow_training.py
mlferry sync --to http://127.0.0.1:5000
"""

import mlflow
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

random = np.random.default_rng(0)
features = random.normal(size=(400, 4))
labels = (features @ [1.0, -2.0, 0.5, 0.0] + random.normal(scale=0.3, size=400) > 0).astype(int)
train_x, test_x, train_y, test_y = train_test_split(features, labels, random_state=0)

mlflow.set_experiment("mlflow as it is")
mlflow.sklearn.autolog()  # params, training metrics and the model
with mlflow.start_run(run_name="logistic regression"):
    model = LogisticRegression(C=0.5).fit(train_x, train_y)
    mlflow.log_metric("test accuracy", model.score(test_x, test_y))
    mlflow.log_text("trained without a network", "notes.txt")
