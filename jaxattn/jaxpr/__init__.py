"""The one place that reads jaxprs."""
