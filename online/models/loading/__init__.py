"""Loading: the ``learner`` setting, or an object that a program passes, becomes a model."""
