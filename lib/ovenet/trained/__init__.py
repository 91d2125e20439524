"""What is done with a trained model: read it from its file or run, predict, share, export."""
