"""The parts of the training loop: batches, augmentation, optimizers, history, checkpoint and several processes."""
