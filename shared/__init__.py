"""What two or more experiments need: options, loading, data, answering, scoring, reports."""
