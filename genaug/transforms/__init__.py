"""Classical augmentation per modality, jitted: the baselines that generators must beat."""
