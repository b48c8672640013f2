"""What the training loop is made of: batches, augmentation, optimizers, history, checkpoint, several processes."""
