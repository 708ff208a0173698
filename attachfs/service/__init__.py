"""The service's HTTP client: requests, retries, limits, credentials."""
