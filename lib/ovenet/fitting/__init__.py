"""From a folder of photos and masks to a trained model, in one call."""
