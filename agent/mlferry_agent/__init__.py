"""The agent: carries spooled runs to an MLflow server."""
