"""Sites: where rectifiers run in a model, and where their units are."""
