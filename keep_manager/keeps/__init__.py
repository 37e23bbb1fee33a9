"""What a manager does with keeps: decided in pure functions, done in `manager`, through `interfaces` alone."""
