"""The dashboard's data and pages."""
